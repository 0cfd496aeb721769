"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const boxes = Array.from(document.querySelectorAll("input[data-number]"));
  const numbered = [];
  boxes.forEach((box) => { numbered[Number(box.dataset.number)] = box; });
  const key = "prudent-review:" + data.source + ":" + data.decisions.map((d) => d.hash.slice(0, 8)).join("").slice(0, 400);
  const remember = () => {
    document.getElementById("selected").textContent = boxes.filter((box) => box.checked).length;
    try { localStorage.setItem(key, JSON.stringify(boxes.map((box) => box.checked))); } catch (error) { /* a private window */ }
  };
  try {
    const kept = JSON.parse(localStorage.getItem(key) || "null");
    if (kept && kept.length === boxes.length) boxes.forEach((box, i) => { box.checked = kept[i]; });
  } catch (error) { /* a private window */ }
  boxes.forEach((box) => box.addEventListener("change", remember));
  const set = (rule, value) => {
    document.querySelectorAll(`section[data-rule="${rule}"] input[data-number]`).forEach((box) => { box.checked = value; });
    remember();
  };
  document.querySelectorAll("button[data-all]").forEach((b) => b.addEventListener("click", () => set(b.dataset.all, true)));
  document.querySelectorAll("button[data-none]").forEach((b) => b.addEventListener("click", () => set(b.dataset.none, false)));
  document.getElementById("reset").addEventListener("click", () => {
    boxes.forEach((box) => { box.checked = box.dataset.start === "1"; });
    remember();
  });
  const text = () => JSON.stringify({
    ...data, decisions: data.decisions.map((entry, i) => ({ ...entry, accept: numbered[i].checked })),
  }, null, 1);
  document.getElementById("save").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text() + "\n"], { type: "application/json" }));
    link.download = "decisions.json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
  window.prudentDecisions = text;
  remember();
})();
