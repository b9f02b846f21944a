"use strict";
// The samples of a report: a list to search and to filter, and one sample with everything that became of it.
// What is shown stands in the address behind "#", so links into the page and the back button work. All text of the run
// enters the page as text nodes.
(() => {
  const PAGE = 50; // samples of a page of the list
  const FILTERS = ["text", "category", "kind", "round", "verdict", "outcome"];
  const KINDS = {
    seed: "seed", seed_new: "new seed", error: "error seed", expanded: "expanded", high_ppl: "high perplexity",
    mastered: "mastered", repeated: "repeated", "held-out": "held out", rejected: "rejected expansion",
  };
  const VERDICTS = {
    label_wrong: "label wrong", prediction_wrong: "answer wrong", both_correct: "both right", both_wrong: "both wrong",
    undecided: "undecided",
  };
  const OUTCOMES = {
    right: "last answer right", wrong: "last answer wrong", learnt: "learnt: wrong, then right",
    lost: "lost: right, then wrong",
  };

  const at = (id) => document.getElementById(id);
  const browser = at("browser"), form = at("filters"), list = at("results"), article = at("sample");
  const narrow = matchMedia("(max-width: 900px)");
  let index, rows, numbers; // rows: objects of the index; numbers: place by id
  let searchable = null; // what text is looked for in, one string a row, once all is unpacked
  let drawn = 0, listed = 0; // count drawings of a sample and of the list, so that a late one does not replace a newer
  let shown = null; // the id of the sample that is open

  // --- elements ---------------------------------------------------------------------------------------------------

  function make(tag, attributes, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (value !== null && value !== false) element.setAttribute(name, value === true ? "" : value);
    }
    element.append(...children.filter((child) => child !== null && child !== ""));
    return element;
  }

  const tag = (words, kind = "") => make("span", { class: `tag ${kind}` }, words);
  const outcome = (right) => tag(right ? "✓ right" : "✗ wrong", right ? "good" : "bad");
  const where = (round) => (round ? `round ${round}` : "before training");
  const count = (number, name) => `${number.toLocaleString("en")} ${name}${number === 1 ? "" : "s"}`;

  function side(pieces, kind) {
    const lines = (piece) => piece.split(/(\n\s*)/).map((line) => (line.trim() ? make(kind, {}, line) : line));
    return make("pre", { dir: "auto" }, ...pieces.flatMap((piece, i) => (i % 2 ? lines(piece) : [piece])));
  }

  function pair(firstTitle, secondTitle, [first, second]) {
    return make("div", { class: "pair" },
      make("div", {}, make("h5", {}, firstTitle), side(first, "del")),
      make("div", {}, make("h5", {}, secondTitle), side(second, "ins")));
  }

  function table(caption, heads, cells) {
    const row = (line) => make("tr", {}, ...line.map((cell, i) =>
      i ? make("td", {}, cell) : make("th", { scope: "row" }, cell)));
    return make("div", { class: "scroll" }, make("table", {}, make("caption", {}, caption),
      make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
      make("tbody", {}, ...cells.map(row))));
  }

  // --- what the page carries -----------------------------------------------------------------------------------------

  function decoded(base64) {
    if (Uint8Array.fromBase64) return Uint8Array.fromBase64(base64);
    return Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  }

  async function unpack(name) {
    const packed = document.querySelector(`script[data-part="${name}"]`).textContent;
    const stream = new Blob([decoded(packed)]).stream().pipeThrough(new DecompressionStream("gzip"));
    return new Response(stream).json();
  }

  const opened = new Map();
  async function item(kind, number) {
    const name = `${kind}-${Math.floor(number / index.part)}`;
    if (!opened.has(name)) opened.set(name, unpack(name));
    return (await opened.get(name))[number % index.part];
  }

  function words(row, detail) {
    const answers = (detail.answers || []).map((answer) => answer.text || answer.diff[1].join(""));
    const judged = (detail.judged || []).map((one) => one.analysis);
    const labels = (detail.labels || []).map(([, label]) => label);
    const said = (detail.messages || []).map((message) => message.text);
    return [row.id, ...said, ...labels, ...answers, ...judged, detail.reason || "", detail.reply || ""]
      .join("\n").toLowerCase();
  }

  let unpacking = null;
  function unpackAll() {
    unpacking ??= (async () => {
      const found = [];
      for (let number = 0; number < index.samples; number++) {
        for (const detail of await unpack(`samples-${number}`)) found.push(words(rows[found.length], detail));
      }
      searchable = found;
    })();
    return unpacking;
  }

  // --- the address ---------------------------------------------------------------------------------------------------

  const named = () => new URLSearchParams(location.hash.includes("=") ? location.hash.slice(1) : "");

  function address(changes) {
    const values = named();
    for (const [key, value] of Object.entries(changes)) {
      if (value) values.set(key, value);
      else values.delete(key);
    }
    return `#${values}` === "#" ? "#samples" : `#${values}`;
  }

  const linkTo = (id) => address({ sample: id });

  // --- the list ------------------------------------------------------------------------------------------------------

  function chosen(values) {
    const [category, kind, verdict, wanted] = ["category", "kind", "verdict", "outcome"].map((key) => values.get(key));
    const round = Number(values.get("round")) || 0;
    const text = (values.get("text") || "").toLowerCase();
    const found = [];
    rows.forEach((row, number) => {
      if (category && row.category !== category) return;
      if (round && ![...row.entries, ...row.answers].some(([r]) => r === round)) return;
      if (kind && row.kind !== kind && !row.entries.some(([r, k]) => k === kind && (!round || r === round))) return;
      if (verdict && !row.judged.some(([r, v]) => v === verdict && (!round || r === round))) return;
      if (wanted && !ended(round ? row.answers.filter(([r]) => r <= round) : row.answers, wanted)) return;
      if (text && !searchable[number].includes(text)) return;
      found.push(number);
    });
    return found;
  }

  function ended(answers, wanted) {
    if (!answers.length) return false;
    const last = answers[answers.length - 1][1];
    if (wanted === "right" || wanted === "wrong") return last === Number(wanted === "right");
    return answers.some(([, right]) => right !== last) && last === Number(wanted === "learnt");
  }

  function entry(number, open) {
    const row = rows[number];
    const kinds = row.entries.length ? row.entries.map(([r, k]) => `D${r} ${KINDS[k]}`).join(", ") : KINDS[row.kind];
    const marks = row.answers.map(([, right]) => (right ? "✓" : "✗")).join(" ");
    const told = row.answers.map(([r, right]) => `${where(r)} ${right ? "right" : "wrong"}`).join(", ");
    return make("li", {}, make("a", { href: linkTo(row.id), "aria-current": row.id === open && "true" },
      make("span", { class: "title", dir: "auto" }, row.title || row.id),
      make("span", { class: "meta" }, row.category ? `${row.category} · ` : "", kinds, " ",
        ...row.judged.map(([, verdict]) => tag(VERDICTS[verdict])),
        marks ? make("span", { class: "marks", role: "img", "aria-label": `answers: ${told}` }, marks) : "")));
  }

  /** Whether it was drawn, and no newer one asked for meanwhile. */
  async function drawList(values) {
    const turn = ++listed;
    if (values.get("text") && !searchable) {
      at("count").textContent = "Unpacking the samples …";
      await unpackAll();
      if (turn !== listed) return false;
    }
    const found = chosen(values);
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    const page = Math.min(pages, Math.max(1, Number(values.get("page")) || 1));
    list.replaceChildren(...found.slice((page - 1) * PAGE, page * PAGE).map((n) => entry(n, values.get("sample"))));
    list.start = (page - 1) * PAGE + 1;
    const some = found.length < rows.length ? `${found.length.toLocaleString("en")} of ` : "";
    at("count").textContent = some + count(rows.length, "sample");
    at("pages").hidden = pages === 1;
    at("page").textContent = `Page ${page} of ${pages}`;
    at("previous").disabled = page === 1;
    at("next").disabled = page === pages;
    at("previous").value = page - 1;
    at("next").value = page + 1;
    return true;
  }

  // --- one sample ----------------------------------------------------------------------------------------------------

  async function drawSample(id) {
    const turn = ++drawn;
    shown = id;
    const number = numbers.get(id);
    if (number === undefined) {
      article.replaceChildren(back(), make("h3", { id: "sample-title", tabindex: "-1" }, id || ""),
        make("p", {}, "This page holds no such sample."));
    } else {
      const detail = await item("samples", number);
      const tools = await Promise.all((detail.tools || []).map((tool) => item("tools", tool)));
      const tree = await lineage(number, detail);
      if (turn !== drawn) return;
      article.replaceChildren(back(), ...about(rows[number], detail), tree, ...conversation(detail, tools),
        ...answers(rows[number], detail));
    }
    article.hidden = false;
    browser.classList.add("open");
    scrollers();
    at("sample-title").focus({ preventScroll: true });
    (narrow.matches ? article : at("samples")).scrollIntoView();
  }

  function close() {
    drawn++;
    shown = null;
    article.hidden = true;
    article.replaceChildren();
    browser.classList.remove("open");
  }

  const back = () => make("p", { class: "back" }, make("a", { href: address({ sample: null }) }, "← Back to the list"));

  function about(row, detail) {
    const rounds = [...new Set([...row.entries, ...row.answers].map(([r]) => r))].sort((a, b) => a - b);
    const of = (lines, round) => (lines || []).find((line) => (line.round ?? line[0]) === round);
    const cells = rounds.map((round) => {
      const [entered, answer, judged] = [row.entries, detail.answers, detail.judged].map((lines) => of(lines, round));
      return [
        where(round),
        entered ? KINDS[entered[1]] : "–",
        entered && index.trained.includes(round) ? "yes" : "no",
        answer ? outcome(answer.right) : "–",
        answer?.perplexity?.toFixed(3) ?? "–",
        judged ? VERDICTS[judged.verdict] : "–",
      ];
    });
    return [
      make("h3", { id: "sample-title", tabindex: "-1" }, row.id),
      make("p", { class: "note" }, `${KINDS[row.kind]}${row.category ? `, ${row.category}` : ""}`,
        detail.scenario ? `, scenario: ${detail.scenario}` : ""),
      detail.tier ? make("p", {}, tag(`rejected: ${detail.tier}`, "bad"), ` ${detail.reason || ""}`) : "",
      detail.valid === undefined ? "" : make("p", {}, detail.valid
        ? tag("✓ valid", "good") : tag("✗ not valid", "bad"), " its label against its request, in the world"),
      rounds.length ? table("Through the rounds",
        ["round", "in the data as", "trained on", "answer", "perplexity", "verdict"], cells) : "",
    ];
  }

  async function lineage(number, detail) {
    const chain = [number];
    for (let above = detail.parent; above !== undefined && numbers.has(above) && chain.length < 20;) {
      chain.unshift(numbers.get(above));
      above = (await item("samples", chain[0])).parent;
    }
    if (chain.length === 1 && !detail.children) return "";
    const label = (n) => [KINDS[rows[n].kind], ...rows[n].entries.map(([round]) => `D${round}`)].join(", ");
    const line = (n) => n === number ? make("b", { "aria-current": "true" }, rows[n].id)
      : make("a", { href: linkTo(rows[n].id) }, rows[n].id);
    const leaf = (n, ...below) => make("li", {}, line(n), make("span", { class: "note" }, ` ${label(n)}`), ...below);
    const children = (detail.children || []).map((id) => leaf(numbers.get(id)));
    let tree = children.length ? make("ul", {}, ...children) : "";
    for (const n of chain.reverse()) tree = make("ul", {}, leaf(n, tree));
    tree.className = "tree";
    return make("section", { "aria-label": "Lineage" }, make("h4", {}, "Lineage"), tree);
  }

  function conversation(detail, tools) {
    const documents = tools.map((document) => {
      try {
        return JSON.stringify(JSON.parse(document), null, 1);
      } catch {
        return document; // it was cut
      }
    });
    const shown = (detail.messages || []).map((message) => make("div", { class: `turn ${message.role}` },
      make("h5", {}, message.name ? `${message.role}: ${message.name}` : message.role),
      make("pre", { dir: "auto" }, message.text)));
    const labels = (detail.labels || []).map(([round, label], i) => make("div", {},
      make("h5", {}, i ? `Label from D${round} on` : "Label"), make("pre", { dir: "auto" }, label)));
    return [
      make("h4", {}, "Conversation"),
      tools.length ? make("details", {}, make("summary", {}, count(tools.length, "tool")),
        ...documents.map((document) => make("pre", { dir: "auto" }, document))) : "",
      ...shown,
      ...labels,
      detail.truth ? make("div", {}, make("h5", {}, "True label (the injected noise is known)"),
        make("pre", { dir: "auto" }, detail.truth)) : "",
      detail.reply ? make("div", {}, make("h5", {}, "What the generator wrote"),
        make("pre", { dir: "auto" }, detail.reply)) : "",
    ];
  }

  function answers(row, detail) {
    if (!detail.answers) return [];
    const cards = detail.answers.map((answer) => {
      const judged = (detail.judged || []).filter((one) => one.round === answer.round);
      return make("section", { class: "answer", "aria-label": `Answer, ${where(answer.round)}` },
        make("h5", {}, `${where(answer.round)} `, outcome(answer.right),
          answer.perplexity === undefined ? "" : ` perplexity ${answer.perplexity.toFixed(3)}`),
        answer.reason ? make("p", { class: "note" }, answer.reason) : "",
        answer.diff ? pair("Label", "Answer", answer.diff) : make("pre", { dir: "auto" }, answer.text),
        ...judged.map(verdict));
    });
    return [make("h4", {}, "Answers"), ...cards];
  }

  const truth = (right, yes, no) => (right === undefined ? "" : tag(right ? yes : no, right ? "good" : "bad"));

  function verdict(one) {
    const kept = { label_wrong: "replaced by the answer", prediction_wrong: "kept" }[one.verdict];
    return make("div", { class: "verdict" },
      make("p", {}, tag(VERDICTS[one.verdict]), ` decided by ${one.decided_by}`,
        one.votes.length ? `; votes: ${one.votes.map((vote) => VERDICTS[vote] || "none").join(", ")}` : "",
        kept ? `; the label was ${kept}` : "", " ",
        truth(one.was_right, "truth: ✓ label was right", "truth: ✗ label was wrong"), " ",
        truth(one.right, "✓ label is right now", "✗ label is wrong now")),
      one.analysis ? make("pre", { dir: "auto" }, one.analysis) : "");
  }

  // --- the page ------------------------------------------------------------------------------------------------------

  function options(id, names, present) {
    const wanted = Object.entries(names).filter(([value]) => present.has(value));
    at(id).append(...wanted.map(([value, name]) => make("option", { value }, name)));
    at(id).closest("label").hidden = wanted.length === 0;
  }

  async function show() {
    const values = named(), before = shown;
    for (const name of FILTERS) form.elements[name].value = values.get(name) || "";
    if (!(await drawList(values))) return;
    if (values.has("sample")) {
      await drawSample(values.get("sample"));
      return;
    }
    close();
    if (location.hash.includes("=") || before) at("samples").scrollIntoView();
    const links = [...list.querySelectorAll("a")];
    if (before) links.find((link) => new URLSearchParams(link.hash.slice(1)).get("sample") === before)?.focus();
  }

  let pending = 0;
  function filtered() {
    const changes = Object.fromEntries(FILTERS.map((name) => [name, form.elements[name].value]));
    history.replaceState(null, "", address({ ...changes, page: null, sample: null }));
    close();
    clearTimeout(pending);
    pending = setTimeout(() => drawList(named()), 60);
  }

  function turn(event) {
    history.pushState(null, "", address({ page: event.currentTarget.value, sample: null }));
    close();
    drawList(named());
    at("count").scrollIntoView({ block: "nearest" });
  }

  /** What scrolls sideways can be reached by keyboard. */
  function scrollers() {
    for (const box of document.querySelectorAll(".scroll")) {
      const over = box.scrollWidth > box.clientWidth;
      const caption = box.querySelector("caption").textContent;
      for (const [name, value] of [["tabindex", "0"], ["role", "group"], ["aria-label", caption]]) {
        if (over) box.setAttribute(name, value);
        else box.removeAttribute(name);
      }
    }
  }

  async function start() {
    scrollers();
    addEventListener("resize", scrollers);
    let closed = [];
    addEventListener("beforeprint", () => {
      closed = [...document.querySelectorAll("details:not([open])")];
      closed.forEach((details) => { details.open = true; });
    });
    addEventListener("afterprint", () => closed.forEach((details) => { details.open = false; }));
    if (typeof DecompressionStream === "undefined") return;
    index = await unpack("index");
    rows = index.rows.map(([id, title, category, kind, entries, given, judged]) => (
      { id, title, category, kind, entries, answers: given, judged }));
    numbers = new Map(rows.map((row, number) => [row.id, number]));
    const categories = [...new Set(rows.map((row) => row.category).filter(Boolean))].sort();
    options("category", Object.fromEntries(categories.map((name) => [name, name])), new Set(categories));
    options("kind", KINDS, new Set(rows.flatMap((row) => [row.kind, ...row.entries.map(([, kind]) => kind)])));
    const rounds = new Set(rows.flatMap((row) => [...row.entries, ...row.answers].map(([round]) => round)));
    const ordered = [...rounds].filter(Boolean).sort((a, b) => a - b).map(String);
    options("round", Object.fromEntries(ordered.map((round) => [round, where(Number(round))])), new Set(ordered));
    options("verdict", VERDICTS, new Set(rows.flatMap((row) => row.judged.map(([, verdict]) => verdict))));
    options("outcome", OUTCOMES, rows.some((row) => row.answers.length) ? new Set(Object.keys(OUTCOMES)) : new Set());
    at("no-script").hidden = true;
    browser.hidden = false;
    form.addEventListener("input", filtered);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(filtered));
    form.elements.text.addEventListener("focus", unpackAll);
    at("previous").addEventListener("click", turn);
    at("next").addEventListener("click", turn);
    addEventListener("hashchange", () => {
      const section = location.hash.length > 1 && !location.hash.includes("=") && location.hash !== "#samples";
      if (!section) show();
    });
    await show();
  }

  start();
})();
