// The page of the API: filters operations as one types, and tries them out. Every text gets into the page as text.

const make = (tag, fields = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), fields);
  made.append(...children);
  return made;
};

const filter = document.querySelector("#filter");
const key = document.querySelector("#key");
const operations = [...document.querySelectorAll("details.operation")];
document.querySelector(".tools").hidden = false;

filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const operation of operations) {
    const text = operation.querySelector("summary").textContent.toLowerCase();
    operation.hidden = !words.every((word) => text.includes(word));
  }
  for (const section of document.querySelectorAll("main section.group")) {
    section.hidden = [...section.querySelectorAll("details.operation")].every((operation) => operation.hidden);
  }
});

/** The form that tries an operation, made when it is opened for the first time. */
function formOf(operation) {
  const { method, path } = operation.dataset;
  const fields = JSON.parse(operation.dataset.fields);
  const inputs = fields.map((field) => {
    const input = make("input", { type: "text", autocomplete: "off", spellcheck: false, required: field.required });
    return { ...field, input, label: make("label", {}, make("code", { textContent: field.name }), input) };
  });
  const body = "body" in operation.dataset ? make("textarea", { value: operation.dataset.body, spellcheck: false }) : null;
  const output = make("pre", { hidden: true, tabIndex: 0, role: "region", ariaLabel: "The answer" });
  const button = make("button", { type: "button", textContent: `Send ${method}` });
  button.addEventListener("click", async () => {
    const valueOf = (place) => inputs.filter((each) => each.place === place && each.input.value !== "");
    let target = path;
    for (const each of valueOf("path")) target = target.replace(`{${each.name}}`, encodeURIComponent(each.input.value));
    const query = new URLSearchParams(valueOf("query").map((each) => [each.name, each.input.value]));
    const headers = { "X-Requested-With": "fetch", ...Object.fromEntries(valueOf("header").map((each) => [each.name, each.input.value])) };
    if (key.value !== "") headers["X-API-Key"] = key.value;
    if (body !== null) headers["Content-Type"] = "application/json";
    output.hidden = false;
    output.textContent = "…";
    try {
      const began = performance.now();
      const url = target + (query.size > 0 ? `?${query}` : "");
      const answer = await fetch(url, { method, headers, body: body === null ? undefined : body.value });
      const text = await answer.text();
      const isJson = /[/+]json/.test(answer.headers.get("Content-Type") ?? "");
      const shown = isJson && text !== "" ? JSON.stringify(JSON.parse(text), null, 2) : text;
      output.textContent = `${answer.status} ${answer.statusText} · ${Math.round(performance.now() - began)} ms\n\n${shown}`;
    } catch (error) {
      output.textContent = `No answer: ${error.message}`;
    }
  });
  const labels = inputs.map((each) => each.label);
  if (body !== null) labels.push(make("label", {}, make("code", { textContent: "body" }), body));
  return make("div", { className: "try" }, ...labels, button, output);
}

for (const operation of operations) {
  operation.addEventListener("toggle", () => {
    const place = operation.querySelector(".here");
    if (operation.open && place !== null) place.replaceWith(formOf(operation));
  });
}

/** What a link names is opened. */
function follow() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target?.matches("details")) target.open = true;
}
addEventListener("hashchange", follow);
follow();
