"use strict";
// Searches, orders and walks through the prompts; without it the page shows them all, and they open.
const rows = [...document.querySelectorAll("#list details")];
const words = (row) => [...row.querySelectorAll(".whole, .candidates td:last-child")].map((found) => found.textContent);
const texts = new Map(rows.map((row) => [row, words(row).join(" ").toLowerCase()]));
const [list, search, split, order, count] = ["list", "search", "split", "order", "count"].map((id) =>
  document.getElementById(id));

function show() {
  const typed = search.value.toLowerCase().split(/\s+/);
  for (const row of rows) {
    const wanted = !split.value || row.dataset.split === split.value;
    row.hidden = !(wanted && typed.every((word) => texts.get(row).includes(word)));
  }
  count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
}

function arrange() {
  const number = (row) => Number(row.dataset[order.value] ?? -Infinity);
  list.append(...(order.value ? [...rows].sort((one, other) => number(other) - number(one) || 0) : rows));
}

function walk(step) {
  const shown = [...list.children].filter((row) => !row.hidden);
  const next = shown[shown.indexOf(document.activeElement.closest("details")) + step];
  (next ? next.firstElementChild : step < 0 ? search : document.activeElement).focus();
}

if (rows.length) {
  document.getElementById("tools").hidden = false;
  search.addEventListener("input", show);
  split.addEventListener("change", show);
  order.addEventListener("change", arrange);
  document.addEventListener("keydown", (event) => {
    const at = event.target;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "/" && !at.matches("input[type=search], select")) search.focus();
    else if (event.key === "ArrowDown" && (at === search || at.matches("#list summary"))) walk(1);
    else if (event.key === "ArrowUp" && at.matches("#list summary")) walk(-1);
    else if (event.key === "Escape" && at === search) {
      search.value = "";
      show();
    } else return;
    event.preventDefault();
  });
  show();
}
