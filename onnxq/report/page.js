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
        table.dispatchEvent(new Event("sorted"));
      };
      head.addEventListener("click", act);
      head.addEventListener("keydown", (event) => {
        if (event.key === "Enter" || event.key === " ") { event.preventDefault(); act(); }
      });
    });
  }

  // A long table is laid out as far as it was scrolled: of the rows that fit, so many are there, and more at its end.
  for (const tools of document.querySelectorAll(".tools[data-for]")) {
    const table = document.getElementById(tools.dataset.for), body = table.tBodies[0], frame = table.parentElement;
    const texts = new Map([...body.rows].map((row) => [row, row.textContent.toLowerCase()]));
    const search = tools.querySelector("input"), kind = tools.querySelector("select"), count = tools.querySelector("output");
    const part = Number(tools.dataset.part);
    let most = part, shown = 0;
    const filter = () => {
      const words = search.value.toLowerCase().split(/\s+/).filter(Boolean), all = texts.size;
      shown = 0;
      for (const row of body.rows) {
        const text = texts.get(row);
        row.hidden = !words.every((word) => text.includes(word)) || (kind.value !== "" && row.dataset.kind !== kind.value);
        row.classList.toggle("later", !row.hidden && shown >= most);
        shown += !row.hidden;
      }
      count.textContent = shown === all ? `${all.toLocaleString("en")} nodes` : `${shown.toLocaleString("en")} of ${all.toLocaleString("en")} nodes`;
    };
    const anew = () => { most = part; frame.scrollTop = 0; filter(); };
    search.addEventListener("input", anew);
    kind.addEventListener("change", anew);
    table.addEventListener("sorted", anew);
    frame.addEventListener("scroll", () => {
      if (shown > most && frame.scrollTop + 3 * frame.clientHeight > frame.scrollHeight) { most += part; filter(); }
    });
    filter();
  }

  document.getElementById("save").addEventListener("click", () => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([document.getElementById("document").textContent], { type: "application/json" }));
    link.download = "onnxq.json";
    link.click();
  });
})();
