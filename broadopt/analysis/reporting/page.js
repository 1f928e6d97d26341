"use strict";
// Sorting and filtering of the tables. Without this file the page reads the same: it adds all that it needs.

const NUMBER = /^(?:< ?)?([-+−]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?)/i;
const names = new Intl.Collator("en", { numeric: true });
const FEWEST_TO_FILTER = 7;

function valueOf(row, column) {
  const text = row.cells[column].textContent.trim();
  const number = NUMBER.exec(text);
  return { text, number: number ? Number(number[1].replace(/,/g, "").replace("−", "-")) : NaN };
}

// Numbers before texts; what is empty last, whichever way a column is sorted.
function compare(first, second, direction) {
  if (!first.text || !second.text) return Number(!first.text) - Number(!second.text);
  const areNumbers = [!Number.isNaN(first.number), !Number.isNaN(second.number)];
  if (areNumbers[0] !== areNumbers[1]) return areNumbers[0] ? -1 : 1;
  const order = areNumbers[0] ? first.number - second.number : 0;
  return direction * (order || names.compare(first.text, second.text));
}

function sort(table, head) {
  const direction = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const body = table.tBodies[0];
  const rows = Array.from(body.rows, (row) => ({ row, value: valueOf(row, head.cellIndex) }));
  rows.sort((first, second) => compare(first.value, second.value, direction));
  body.append(...rows.map((entry) => entry.row));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
}

function makeSortable(table) {
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head));
    head.append(button);
  }
}

function makeFilterable(table) {
  const filter = table.parentElement.previousElementSibling;
  const input = filter.querySelector("input");
  const rows = Array.from(table.tBodies[0].rows);
  if (rows.length < FEWEST_TO_FILTER) return;
  let texts = null; // of all rows, read when they are first needed
  filter.hidden = false;
  input.addEventListener("input", () => {
    texts ??= rows.map((row) => Array.from(row.cells, (cell) => cell.textContent).join("\t").toLowerCase());
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, index) => {
      row.hidden = !words.every((word) => texts[index].includes(word));
      shown += !row.hidden;
    });
    filter.querySelector("output").value = words.length ? `${shown} of ${rows.length} rows` : "";
  });
}

for (const table of document.querySelectorAll("main table")) {
  makeSortable(table);
  makeFilterable(table);
}
