"use strict";
// Draws with Plotly, once the page is there; every number is read from the document.
(() => {
  const found = JSON.parse(document.getElementById("document").textContent);
  const plain = (text) => String(text).replaceAll("&", "&amp;").replaceAll("<", "&lt;"); // Plotly reads some markup
  const color = (name) => { // a variable holds both modes; what is computed for an element is one of them
    const probe = document.body.appendChild(document.createElement("i"));
    probe.style.color = `var(--${name})`;
    const seen = getComputedStyle(probe).color;
    probe.remove();
    return seen;
  };
  const axis = (title, more = {}) => ({
    title: { text: title, font: { size: 12 }, standoff: 6 }, gridcolor: color("line"), zerolinecolor: color("line"),
    linecolor: color("line"), fixedrange: true, automargin: true, ...more,
  });
  const layout = (x, y, more = {}) => ({
    paper_bgcolor: "transparent", plot_bgcolor: "transparent", margin: { l: 48, r: 14, t: 10, b: 40 },
    font: { family: "system-ui, sans-serif", size: 11, color: color("faint") }, showlegend: false, dragmode: false,
    hoverlabel: { bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink") } },
    xaxis: x, yaxis: y, ...more,
  });
  const size = (bytes) => bytes / 1048576;

  const frontier = () => {
    const points = found.frontier, drops = new Set(points.map((point) => point.drop));
    const lost = drops.size > 1 && !drops.has(null); // equal drops tell nothing apart
    const label = (p) => `${plain(p.file.split("/").pop())}<br>${size(p.size).toFixed(2)} MiB, ${p.milliseconds.toPrecision(3)} ms`;
    return [[{
      type: "scatter", mode: "markers", hoverinfo: "text", hovertext: points.map(label),
      x: points.map((p) => p.milliseconds), y: points.map((p) => (lost ? p.drop : p.sqnr_db)),
      marker: {
        size: points.map((p) => (p.chosen ? 15 : 10)), line: { width: 2, color: color("accent") },
        color: points.map((p) => color(p.chosen ? "accent" : "card")), symbol: points.map((p) => (p.holds ? "circle" : "x")),
      },
    }], layout(axis("milliseconds"), axis(lost ? `drop (${plain(points[0].metric)})` : "SQNR in dB"))];
  };

  const lesson = () => {
    const looks = found.lesson.looks, blocks = found.lesson.method === "blocks", best = looks.filter((look) => look.step === found.lesson.best);
    const line = (some, more) => ({ type: "scatter", x: some.map((l) => l.step), y: some.map((l) => l.loss), ...more });
    return [[
      line(looks, { mode: "lines+markers", line: { color: color("accent"), width: 2 }, marker: { size: 4 } }),
      line(best, { mode: "markers", marker: { size: 11, color: color("good") }, hovertemplate: "taken: %{y:.4g}<extra></extra>" }),
    ], layout(axis(blocks ? "blocks" : "steps"), axis(`loss on samples ${blocks ? "learned from" : "held back"}`, { rangemode: "tozero" }))];
  };

  const histogram = (index) => {
    const range = found.ranges[index];
    const middles = range.counts.map((_, bar) => range.start + (bar + 0.5) * range.width);
    const beyond = (x) => // the last bar may reach past the largest value
      (x < range.range_low && range.low < range.range_low) || (x > range.range_high && range.high > range.range_high);
    const [cut, inside] = [color("bad"), color("accent")], kept = middles.map((x) => (beyond(x) ? cut : inside));
    const edge = (x) => ({ type: "line", xref: "x", yref: "paper", x0: x, x1: x, y0: 0, y1: 1, line: { color: color("ink"), width: 1, dash: "dot" } });
    return [[{
      type: "bar", x: middles, y: range.counts, width: range.width, marker: { color: kept, line: { width: 0 } },
      hovertemplate: "%{y:,} values at %{x:.4g}<extra></extra>",
    }], layout(axis(""), axis("", { type: "log", dtick: 2 }), {
      shapes: [edge(range.range_low), edge(range.range_high)], bargap: 0, margin: { l: 40, r: 8, t: 6, b: 24 },
    })];
  };

  const draw = (place) => {
    const makers = { frontier, lesson, histogram: () => histogram(Number(place.dataset.index)) };
    const [traces, shape] = makers[place.dataset.chart]();
    return Plotly.react(place, traces, shape, { displayModeBar: false, responsive: true });
  };

  const unpack = async () => {
    const text = atob(document.getElementById("plotly").textContent), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
  };

  addEventListener("load", async () => {
    await unpack();
    for (const place of document.querySelectorAll(".plot")) {
      await draw(place);
      place.dataset.drawn = "yes";
    }
  });
  document.addEventListener("theme", () => document.querySelectorAll(".plot[data-drawn]").forEach(draw));
})();
