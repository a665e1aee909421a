"use strict";
// The page reads without this: it sorts tables and shows the curve of one class.
document.body.classList.add("scripted");

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const sign = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
      const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent.trim();
      body.append(...[...body.rows].sort((a, b) => compare(value(a), value(b), sign)));
    });
  });
}

// What is no number comes after numbers; an empty value is always last.
function compare(a, b, sign) {
  if (a === "" || b === "") return (a === "") - (b === "");
  const [x, y] = [Number(a), Number(b)];
  if (Number.isNaN(x) || Number.isNaN(y)) return -sign * a.localeCompare(b);
  return sign * (x - y);
}

const choice = document.getElementById("curve-class");
choice?.addEventListener("change", () => {
  const figure = document.getElementById("curves");
  figure.querySelector("svg").classList.toggle("chosen", choice.value !== "");
  for (const part of figure.querySelectorAll("[data-class]")) {
    part.classList.toggle("on", part.dataset.class === choice.value);
  }
});

for (const pair of document.querySelectorAll(".pair")) {
  pair.addEventListener("click", () => pair.parentElement.classList.toggle("large"));
}
