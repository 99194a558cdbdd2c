"use strict";
// Light and dark, tables that sort and search, and the document to keep.
(() => {
  const root = document.documentElement;
  const remembered = (value) => {
    try {
      if (value) localStorage.setItem("onnxq-theme", value);
      return localStorage.getItem("onnxq-theme");
    } catch { return null; } // a page from a file may have no memory
  };
  const isDark = () => root.dataset.theme
    ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  const before = remembered();
  if (before === "dark" || before === "light") root.dataset.theme = before;
  const changed = () => document.dispatchEvent(new Event("theme"));
  document.getElementById("theme").addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    remembered(root.dataset.theme);
    changed();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);

  // A cell counts by the number in it, else by its text; empty cells come last either way.
  const key = (row, column) => {
    const cell = row.cells[column], number = cell.querySelector("data");
    return number ? Number(number.value) : cell.textContent.trim();
  };
  const isEmpty = (value) => value === "" || value === "–";
  const compare = (a, b) => typeof a === "number" && typeof b === "number"
    ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });

  const sort = (table, column, direction) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => [key(row, column), row]);
    const full = rows.filter(([value]) => !isEmpty(value)), rest = rows.filter(([value]) => isEmpty(value));
    full.sort(([a], [b]) => direction * compare(a, b));
    body.append(...[...full, ...rest].map(([, row]) => row));
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      head.setAttribute("aria-sort", "none");
      head.tabIndex = 0;
      const act = () => {
        const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        heads.forEach((other) => other.setAttribute("aria-sort", "none"));
        head.setAttribute("aria-sort", order);
        sort(table, column, order === "ascending" ? 1 : -1);
      };
      head.addEventListener("click", act);
      head.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(); }
      });
    });
  }

  for (const tools of document.querySelectorAll(".tools[data-for]")) {
    const rows = [...document.getElementById(tools.dataset.for).tBodies[0].rows];
    const texts = rows.map((row) => row.textContent.toLowerCase());
    const search = tools.querySelector("input"), kind = tools.querySelector("select"), count = tools.querySelector("output");
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
      let shown = 0;
      rows.forEach((row, index) => {
        const fits = words.every((word) => texts[index].includes(word)) && (!kind.value || row.dataset.kind === kind.value);
        row.hidden = !fits;
        shown += fits;
      });
      count.textContent = shown === rows.length ? `${rows.length} nodes` : `${shown} of ${rows.length} nodes`;
    };
    search.addEventListener("input", filter);
    kind.addEventListener("change", filter);
    filter();
  }

  document.getElementById("save").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([document.getElementById("document").textContent], { type: "application/json" }));
    link.download = "onnxq.json";
    link.click();
  });
})();
