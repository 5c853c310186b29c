"use strict";
(() => {
  const PER_PAGE = 10;
  const POINTS = { win: 1, loss: 0 };
  const SIDES = { 1: "the policy", 0.5: "a tie", 0: "the reference" };
  const LABELS = {
    "position-inconsistent": "flipped with the order", fails: "the policy fails", "base-fails": "only the base fails",
  };
  const data = JSON.parse(document.getElementById("item-data").textContent);
  const byId = (name) => document.getElementById("browser-" + name);
  const [chosenSet, topic, criterion, result, crisis, search] =
    ["set", "topic", "criterion", "result", "crisis", "search"].map(byId);
  const list = byId("list");
  let found = [];
  let page = 0;

  // Texts of clients and models only ever become text nodes.
  const make = (tag, className, ...children) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    element.append(...children);
    return element;
  };
  const fill = (select, options) => {
    const [before, named] = [select.value, select.selectedOptions[0]?.text];
    select.replaceChildren(...options.map(([value, label]) => new Option(label, value)));
    if (options.some(([value, label]) => value === before && label === named)) select.value = before;
  };
  const words = (item) => {
    item.words ??= [
      item.title,
      data.texts[item.speech],
      ...item.answers.flatMap((answer) => [answer.author, data.texts[answer.text], answer.reasons]),
      ...(item.orders ?? []).map((order) => order.reasons),
    ].join("\n").toLowerCase();
    return item.words;
  };
  const lowest = (item, name) =>
    Math.min(...item.answers.flatMap((each) => (name ? [each.ratings[name] ?? Infinity] : Object.values(each.ratings))));

  const adaptToSet = () => {
    const group = data.sets[chosenSet.value];
    const topics = new Set(data.items.filter((item) => item.set == chosenSet.value).map((item) => item.topic));
    fill(topic, [["*", "all topics"], ...[...topics].sort().map((name) => [name, name || "(no topic)"])]);
    if (group.results.length) {
      fill(criterion, group.criteria.map((name, place) => [String(place), name]));
      const isLabelled = data.items.some((item) => item.set == chosenSet.value && Object.keys(item.labels).length);
      const disputed = isLabelled ? [["disputed", "people see it differently"]] : [];
      fill(result, [["", "all outcomes"], ...disputed, ...group.results.map((name) => [name, LABELS[name] ?? name])]);
    } else {
      fill(criterion, [["", "any principle"], ...group.criteria.map((name) => [name, name])]);
      fill(result, [["", "all ratings"], ...group.points.slice(0, -1).map((each) => [String(each), `an answer at most ${each}`])]);
    }
  };
  const isDisputed = (item) => Object.values(item.labels).some((points) => points !== (POINTS[item.outcomes[0]] ?? 0.5));
  const isResult = (item) => {
    if (result.value === "disputed") return isDisputed(item);
    if (item.outcomes) return item.outcomes[criterion.value] === result.value;
    return lowest(item, criterion.value) <= Number(result.value);
  };
  const matches = (item, sought) => {
    if (item.set != chosenSet.value || (topic.value !== "*" && item.topic !== topic.value)) return false;
    if (crisis.checked && !item.crisis) return false;
    if (result.value && !isResult(item)) return false;
    return !sought || words(item).includes(sought);
  };

  const badge = (outcome, words) => make("span", "badge " + outcome, words ?? LABELS[outcome] ?? outcome);
  const table = (header, rows) => {
    const cells = (tag, row) => make("tr", "", ...row.map((cell) => make(tag, "", cell)));
    return make("div", "scroll", make("table", "", make("thead", "", cells("th", header)),
      make("tbody", "", ...rows.map((row) => cells("td", row)))));
  };
  const answered = (answer, role) => {
    const ratings = Object.entries(answer.ratings).map(([name, rating]) => `${name} ${Math.round(100 * rating) / 100}`);
    const text = make("p", "said", data.texts[answer.text] || "(empty)");
    text.dir = "auto";
    const box = make("div", "", make("p", "label", answer.author + role), text);
    if (answer.faults.length) box.append(make("p", "", ...answer.faults.flatMap((name) => [badge("fails", name), " "])));
    if (ratings.length) box.append(make("p", "remark", ratings.join(", ")));
    if (answer.reasons) box.append(make("p", "remark said", answer.reasons));
    return box;
  };
  const show = (item) => {
    const group = data.sets[item.set];
    const speech = data.texts[item.speech];
    const now = data.texts[item.now];
    const excerpt = item.title ? item.title : item.crisis ? "Speech about crisis" : now.length > 110 ? now.slice(0, 109) + "…" : now;
    const summary = make("summary", "");
    const outcome = item.outcomes?.[criterion.value];
    if (outcome) summary.append(badge(outcome), " ");
    summary.append(excerpt);
    const said = make("blockquote", "said", speech);
    said.dir = "auto";
    const roles = group.compares ? [" (policy)", " (reference)"] : [];
    // What is about crisis is opened one by one, except where it is all that there is.
    const details = make("details", item.crisis && !item.title ? "item crisis" : "item", summary, said);
    if (item.topic) details.append(make("p", "remark", item.topic));
    details.append(make("div", "sides", ...item.answers.map((each, place) => answered(each, roles[place] ?? ""))));
    if (item.orders) {
      const rows = group.criteria.map((name, place) => [name,
        ...item.orders.map((order) => order.winners[place] ?? order.status), badge(item.outcomes[place])]);
      details.append(table(["preferred", "policy shown first", "policy shown second", "together"], rows));
      const people = Object.entries(item.labels).map(([rater, points]) => `${rater} prefers ${SIDES[points]}`);
      if (people.length) details.append(make("p", "remark", `People: ${people.join(", ")}.`));
      item.orders.forEach((order, place) => {
        if (order.reasons) {
          const first = place ? "A is the reference" : "A is the policy";
          details.append(make("p", "remark said", `${first}: ${order.reasons}`));
        }
      });
    }
    return details;
  };

  const render = () => {
    const pages = Math.max(1, Math.ceil(found.length / PER_PAGE));
    page = Math.min(Math.max(page, 0), pages - 1);
    list.replaceChildren(...found.slice(page * PER_PAGE, (page + 1) * PER_PAGE).map(show));
    const group = data.sets[chosenSet.value];
    const shown = data.items.filter((item) => item.set == chosenSet.value).length;
    const left = shown < group.total ? ` (of ${group.total.toLocaleString("en")}, ${group.order})` : "";
    byId("status").textContent = `${found.length.toLocaleString("en")} of ${shown.toLocaleString("en")} items${left}, page ${page + 1} of ${pages}`;
    byId("previous").disabled = page === 0;
    byId("next").disabled = page === pages - 1;
  };
  const filter = () => {
    const sought = search.value.trim().toLowerCase();
    found = data.items.filter((item) => matches(item, sought));
    page = 0;
    render();
  };
  const turn = (by) => {
    page += by;
    render();
    list.querySelector("summary")?.focus();
  };
  const move = (by) => {
    const summaries = [...list.querySelectorAll("summary")];
    const at = summaries.indexOf(document.activeElement);
    summaries[at < 0 ? 0 : Math.min(Math.max(at + by, 0), summaries.length - 1)]?.focus();
  };
  const openAll = () => {
    const items = [...list.querySelectorAll("details:not(.crisis)")];
    const isOpen = items.every((each) => each.open);
    items.forEach((each) => { each.open = !isOpen; });
  };

  fill(chosenSet, data.sets.map((group, number) => [String(number), group.title]));
  adaptToSet();
  filter();
  byId("controls").hidden = false;
  let pending = 0;
  search.addEventListener("input", () => { clearTimeout(pending); pending = setTimeout(filter, 120); });
  chosenSet.addEventListener("change", () => { adaptToSet(); filter(); });
  for (const control of [topic, criterion, result, crisis]) control.addEventListener("change", filter);
  byId("previous").addEventListener("click", () => turn(-1));
  byId("next").addEventListener("click", () => turn(1));
  byId("open").addEventListener("click", openAll);
  const keys = { j: () => move(1), k: () => move(-1), n: () => turn(1), p: () => turn(-1), o: openAll, "/": () => search.focus() };
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const isTyping = event.target.matches("input:not([type=checkbox]), select, textarea");
    if (isTyping && event.key === "Escape") event.target.blur();
    if (isTyping || !keys[event.key]) return;
    if (event.key !== "/" && !isInView()) return;
    event.preventDefault();
    keys[event.key]();
  });
  const isInView = () => {
    const place = byId("controls").parentElement.getBoundingClientRect();
    return place.top < innerHeight && place.bottom > 0;
  };
})();
