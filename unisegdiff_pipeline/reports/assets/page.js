"use strict";
// Sorting and searching of tables, and hints. The page reads without it; it only adds to what is there.

function cellKey(row, column) {
  const cell = row.cells[column];
  if (cell.dataset.value !== undefined) return Number(cell.dataset.value);
  if (cell.classList.contains("undefined")) return null;
  return cell.textContent.trim();
}

function compareKeys(a, b) {
  if (typeof a === "number" && typeof b === "number") return a - b;
  return String(a).localeCompare(String(b), "en", { numeric: true, sensitivity: "base" });
}

function sortTable(table, column, descending) {
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => ({ row, key: cellKey(row, column) }));
  rows.sort((a, b) => {
    if (a.key === null || b.key === null) return (a.key === null) - (b.key === null); // undefined is last both ways
    return descending ? compareKeys(b.key, a.key) : compareKeys(a.key, b.key);
  });
  body.append(...rows.map((entry) => entry.row));
}

function makeSortable(table) {
  const headings = Array.from(table.tHead.rows[0].cells);
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...heading.childNodes);
    heading.append(button);
    heading.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      headings.forEach((other) => other.setAttribute("aria-sort", "none"));
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortTable(table, column, descending);
    });
  });
}

function makeSearchable(box, table) {
  const bar = document.createElement("div");
  const field = document.createElement("input");
  const count = document.createElement("output");
  const rows = Array.from(table.tBodies[0].rows, (row) => ({ row, text: row.textContent.toLowerCase() }));
  const name = table.caption ? table.caption.textContent : "table";
  bar.className = "search";
  field.type = "search";
  field.placeholder = "Search";
  field.setAttribute("aria-label", `Search: ${name}`);
  const update = () => {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const { row, text } of rows) {
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    count.textContent = words.length ? `${shown} of ${rows.length} rows` : `${rows.length} rows`;
  };
  field.addEventListener("input", update);
  bar.append(field, count);
  box.prepend(bar);
  update();
}

for (const box of document.querySelectorAll(".table-box")) {
  const table = box.querySelector("table");
  if (box.dataset.sortable !== undefined) makeSortable(table);
  if (box.dataset.searchable !== undefined) makeSearchable(box, table);
}

// On a narrow window nothing else tells that a table or a picture goes on at its side.
function hintAtScrolling(scroller, what) {
  const hint = document.createElement("p");
  hint.className = "scroll-hint";
  hint.textContent = `\u2194 scroll sideways for ${what}`;
  scroller.after(hint);
  const update = () => { hint.hidden = scroller.scrollWidth <= scroller.clientWidth + 1; };
  new ResizeObserver(update).observe(scroller);
  update();
}
for (const scroller of document.querySelectorAll(".table-scroll")) hintAtScrolling(scroller, "more columns");
for (const scroller of document.querySelectorAll(".wide > .picture")) hintAtScrolling(scroller, "the rest");

// A click on a small picture enlarges it.
for (const picture of document.querySelectorAll(".panels figure")) {
  const toggle = () => picture.setAttribute("aria-expanded", String(picture.classList.toggle("large")));
  picture.tabIndex = 0;
  picture.setAttribute("role", "button");
  picture.setAttribute("aria-expanded", "false");
  picture.addEventListener("click", toggle);
  picture.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" && event.key !== " ") return;
    event.preventDefault();
    toggle();
  });
}

// What is folded away is printed all the same.
let closed = [];
window.addEventListener("beforeprint", () => {
  closed = Array.from(document.querySelectorAll("details:not([open])"));
  closed.forEach((part) => { part.open = true; });
});
window.addEventListener("afterprint", () => closed.forEach((part) => { part.open = false; }));
