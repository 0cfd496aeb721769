"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const boxes = Array.from(document.querySelectorAll("input[data-order]"));
  const key = "prudent-label:" + data.length + ":" + data.map((row) => row.id).join(",").slice(0, 400);
  const votes = () => {
    const found = {};
    boxes.filter((box) => box.checked).forEach((box) => { found[box.dataset.order] = box.value; });
    return found;
  };
  const remember = () => {
    document.getElementById("done").textContent = Object.keys(votes()).length;
    try { localStorage.setItem(key, JSON.stringify(votes())); } catch (error) { /* a private window */ }
  };
  try {
    const kept = JSON.parse(localStorage.getItem(key) || "{}");
    boxes.forEach((box) => { box.checked = kept[box.dataset.order] === box.value; });
  } catch (error) { /* a private window */ }
  boxes.forEach((box) => box.addEventListener("change", remember));
  const text = () => Object.entries(votes())
    .map(([order, vote]) => JSON.stringify({ ...data[Number(order) - 1], votes: [vote] }) + "\n").join("");
  document.getElementById("save").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text()], { type: "application/jsonl" }));
    link.download = "labelled.jsonl";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  window.prudentLabels = text;
  remember();
})();
