(() => {
  "use strict";
  const all = (query) => Array.from(document.querySelectorAll(query));
  const parts = new Map();
  for (const each of all("[data-t]")) {
    const key = each.dataset.t;
    if (!parts.has(key)) parts.set(key, []);
    parts.get(key).push(each);
  }
  let hot = [];
  document.addEventListener("mouseover", (event) => {
    for (const each of hot) each.classList.remove("hot");
    const found = event.target.closest("[data-t]");
    hot = found ? parts.get(found.dataset.t) : [];
    for (const each of hot) each.classList.add("hot");
  });
  const tools = document.querySelector(".tools");
  if (tools) {
    tools.hidden = false;
    const rows = all("#tasks tbody tr").map((row) => ({ row, text: row.textContent.toLowerCase(), status: row.dataset.s }));
    const input = tools.querySelector("input");
    const buttons = Array.from(tools.querySelectorAll("button"));
    const shown = document.querySelector("#shown");
    const apply = () => {
      const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      const wanted = buttons.filter((each) => each.getAttribute("aria-pressed") === "true").map((each) => each.dataset.s);
      let count = 0;
      for (const { row, text, status } of rows) {
        row.hidden = (wanted.length > 0 && !wanted.includes(status)) || !words.every((word) => text.includes(word));
        if (!row.hidden) count += 1;
      }
      shown.textContent = count === rows.length ? "" : `${count} of ${rows.length} shown`;
    };
    input.addEventListener("input", apply);
    for (const each of buttons) {
      each.addEventListener("click", () => {
        each.setAttribute("aria-pressed", each.getAttribute("aria-pressed") === "true" ? "false" : "true");
        apply();
      });
    }
  }
  window.addEventListener("beforeprint", () => { for (const each of all("details")) each.open = true; });
})();
