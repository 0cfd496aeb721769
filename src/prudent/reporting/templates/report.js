(function () {
  "use strict";
  var options = {
    renderer: "svg",
    actions: { export: true, source: false, compiled: false, editor: false },
  };
  function draw(plot) {
    if (plot.dataset.state || !plot.clientWidth) return;
    plot.dataset.state = "drawing";
    var spec = JSON.parse(document.getElementById(plot.dataset.spec).textContent);
    vegaEmbed(plot, spec, options).then(
      function () { plot.dataset.state = "drawn"; },
      function (error) {
        plot.dataset.state = "failed";
        plot.textContent = "This chart could not be drawn: " + error.message;
      }
    );
  }
  function drawAll() { document.querySelectorAll(".plot").forEach(draw); }
  // A chart in a folded box has no width yet: it is drawn when the box opens.
  document.querySelectorAll("details").forEach(function (box) { box.addEventListener("toggle", drawAll); });
  window.addEventListener("resize", drawAll); // a turned phone may show the other of two widths
  window.addEventListener("beforeprint", function () {
    document.querySelectorAll("details").forEach(function (box) { box.open = true; });
    drawAll();
  });
  drawAll();
})();
