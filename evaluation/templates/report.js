"use strict";
// Tables: a click on a header sorts, best first, and a second one turns it round. Cells without a number stay last.
for (const button of document.querySelectorAll(".sort")) {
  button.addEventListener("click", () => {
    const head = button.closest("th");
    const first = head.dataset.first;
    const order = head.getAttribute("aria-sort") === first
      ? (first === "ascending" ? "descending" : "ascending") : first;
    for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    const body = head.closest("table").tBodies[0];
    const sign = order === "ascending" ? 1 : -1;
    const value = (row) => parseFloat(row.cells[head.cellIndex].dataset.value);
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [value(a), value(b)];
      return (isNaN(x) - isNaN(y)) || sign * (x - y) || 0;
    });
    body.append(...rows);
  });
}

// Curves: the legend's methods are picked out, for as long as they are pointed at or until pressed again.
const curves = document.getElementById("curves");
if (curves) {
  const keys = [...curves.querySelectorAll(".key")];
  const show = (pointed) => {
    const chosen = new Set(keys.filter((key) => key.getAttribute("aria-pressed") === "true").map((key) => key.dataset.line));
    if (pointed) chosen.add(pointed);
    curves.classList.toggle("picked", chosen.size > 0);
    for (const line of curves.querySelectorAll(".panels .line")) line.classList.toggle("lit", chosen.has(line.dataset.line));
  };
  for (const key of keys) {
    key.addEventListener("click", () => {
      key.setAttribute("aria-pressed", key.getAttribute("aria-pressed") === "true" ? "false" : "true");
      show();
    });
    key.addEventListener("mouseenter", () => show(key.dataset.line));
    key.addEventListener("mouseleave", () => show());
  }
  for (const line of curves.querySelectorAll(".panels .line")) {
    line.addEventListener("mouseenter", () => show(line.dataset.line));
    line.addEventListener("mouseleave", () => show());
  }
}

// On paper nothing is folded away.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const one of folded) one.open = true;
});
addEventListener("afterprint", () => { for (const one of folded) one.open = false; });
