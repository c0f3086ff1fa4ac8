"use strict";
// The page is complete without this file. It sorts tables, copies commands, and shows one row's marks in all pictures.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
  heads.forEach((head, column) => {
    if (!head.hasAttribute("data-sort")) return;
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const falls = head.getAttribute("aria-sort") === "descending" || (!head.hasAttribute("aria-sort") && head.dataset.sort === "up");
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", falls ? "ascending" : "descending");
      const key = (row) => (row.cells[column].hasAttribute("data-value") ? Number(row.cells[column].dataset.value) : NaN);
      const rows = [...body.rows].sort((a, b) => {
        const [x, y] = [key(a), key(b)];
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return falls ? x - y : y - x;
      });
      body.append(...rows);
    });
  });
}
if (navigator.clipboard) {
  for (const code of document.querySelectorAll("code.command")) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "copy";
    button.textContent = "copy";
    button.setAttribute("aria-label", "copy the command: " + code.textContent);
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(code.textContent);
      button.textContent = "copied";
    });
    code.after(button);
  }
}
const marks = [...document.querySelectorAll("svg [class^='row-'], svg [class^='base-'], tr[data-row]")];
const rowOf = (element) => element.dataset.row || element.getAttribute("class");
const show = (row) => marks.forEach((mark) => mark.classList.toggle("dim", Boolean(row) && rowOf(mark).split(" ")[0] !== row));
for (const mark of marks) {
  const row = rowOf(mark);
  mark.addEventListener("pointerenter", () => show(row));
  mark.addEventListener("pointerleave", () => show(""));
}
