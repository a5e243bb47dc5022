// The β editor: a strength, how it is spread over the steps, and the curve that this makes, whose points can be
// moved one by one. All of it is native inputs, so that it works with a keyboard and with a reader of screens.
// `element`, `props`, `trigger` and `watch` are gradio's. props.value: {beta, schedule, curve, weights, steps}.
const root = element.querySelector(".ns-beta");
const perStep = PER_STEP;
const make = (tag, attributes, ...children) => {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
};
const round = (number) => Math.round(number * 1000) / 1000;

const strength = make("input", {type: "range", min: 0, max: 2, step: 0.05, "aria-label": "β, the strength of SSG"});
const exact = make("input", {type: "number", min: 0, max: 20, step: 0.05, "aria-label": "β as a number"});
const choice = make("div", {class: "ns-segments", role: "radiogroup", "aria-label": "How β is spread over the steps"});
const lines = document.createElementNS("http://www.w3.org/2000/svg", "svg");
lines.setAttribute("aria-hidden", "true");
lines.setAttribute("preserveAspectRatio", "none");
const steps = make("div", {class: "ns-steps"});
const figures = make("p", {class: "ns-figures"});
const [mark, words] = [root.querySelector(".ns-help"), root.querySelector(".ns-words")];
root.append(
  make("div", {class: "ns-strength"}, make("span", {class: "ns-label"}, "SSG strength β"), mark, strength, exact),
  words,
  choice,
  make("div", {class: "ns-curve"}, lines, steps),
  figures,
);

let state = null;
let top = 2;

const curveOf = (value) =>
  value.schedule === perStep ? value.curve.slice() : value.weights[value.schedule].map((w) => round(w * value.beta));

// The line behind the points; the first step has nothing before it and is never guided.
const trace = () => {
  const count = state.curve.length;
  const x = (i) => ((i + 0.5) / count) * 100;
  const y = (v) => 100 - (v / top) * 100;
  const points = state.curve.slice(1).map((v, i) => `${x(i + 1)},${y(v)}`);
  lines.setAttribute("viewBox", "0 0 100 100");
  lines.innerHTML = points.length
    ? `<polygon points="${x(1)},100 ${points.join(" ")} ${x(count - 1)},100"/><polyline points="${points.join(" ")}"/>`
    : "";
};

const show = () => {
  strength.max = Math.max(2, state.beta);
  strength.value = state.beta;
  exact.value = round(state.beta);
  for (const button of choice.querySelectorAll("input")) button.checked = button.value === state.schedule;
  steps.querySelectorAll("input").forEach((input, i) => {
    input.max = top;
    input.value = i ? state.curve[i] : 0;
    input.setAttribute("aria-valuetext", `β ${round(state.curve[i])}`);
    input.parentElement.title = i ? `β ${round(state.curve[i])}` : "The first step is never guided";
  });
  figures.textContent = `β of the steps: –, ${state.curve.slice(1).map((v) => Math.round(v * 100) / 100).join(", ")}`;
  trace();
};

const tell = () => {
  props.value = {...state, curve: state.curve.map(round)};
  trigger("input");
};

const strengthMoved = (value, done) => {
  if (value === "" || !Number.isFinite(Number(value))) return show(); // no number: what was there before
  const wanted = Math.min(20, Math.max(0, Number(value)));
  if (state.schedule === perStep) {
    const largest = Math.max(...state.curve);
    state.curve = state.curve.map((v) => (largest > 0 ? (v * wanted) / largest : wanted));
  }
  state.beta = wanted;
  state.curve = curveOf(state);
  top = Math.max(2, ...state.curve);
  show();
  if (done) tell();
};
strength.addEventListener("input", () => strengthMoved(strength.value, false));
strength.addEventListener("change", () => strengthMoved(strength.value, true));
exact.addEventListener("change", () => strengthMoved(exact.value, true));

const stepMoved = (index, value, done) => {
  state.schedule = perStep;
  state.curve[index] = Number(value);
  state.curve[0] = 0;
  state.beta = Math.max(...state.curve);
  show();
  if (done) tell();
};

// Points are moved by a mouse that presses and drags, by a tap, and by a finger that moves sideways, which draws
// the curve. A finger that moves up or down scrolls the page: the style sheet leaves that to the browser.
let held = null; // of the pointer that is down: {x, index, drawing}
const at = (event) => {
  const inputs = [...steps.querySelectorAll("input")];
  const box = steps.getBoundingClientRect();
  const index = Math.floor(((event.clientX - box.left) / box.width) * inputs.length);
  return Math.min(inputs.length - 1, Math.max(0, index));
};
const move = (index, event, done) => {
  const input = steps.querySelectorAll("input")[index];
  if (input.disabled) return done && held.drawing ? tell() : undefined;
  const box = input.getBoundingClientRect();
  const share = (box.bottom - 8 - event.clientY) / (box.height - 16); // the middle of the point, at both ends
  stepMoved(index, round(Math.round((Math.min(1, Math.max(0, share)) * top) / 0.05) * 0.05), done);
};
steps.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !event.isPrimary) return;
  const mouse = event.pointerType === "mouse";
  held = {x: event.clientX, index: at(event), mouse, drawing: mouse};
  if (!mouse) return;
  event.preventDefault(); // no selecting of text
  steps.setPointerCapture(event.pointerId);
  steps.querySelectorAll("input")[held.index].focus();
  move(held.index, event, false);
});
steps.addEventListener("pointermove", (event) => {
  if (!held) return;
  if (!held.drawing && Math.abs(event.clientX - held.x) > 8) {
    held.drawing = true;
    steps.setPointerCapture(event.pointerId);
  }
  if (held.drawing) move(held.mouse ? held.index : at(event), event, false);
});
steps.addEventListener("pointerup", (event) => {
  if (!held) return;
  move(held.mouse ? held.index : at(event), event, true);
  held = null;
});
steps.addEventListener("pointercancel", () => {
  if (held?.drawing) tell();
  held = null;
});

const build = () => {
  const value = props.value;
  if (!value || !value.weights) return;
  state = {...value, curve: value.curve.slice()};
  top = Math.max(2, ...state.curve);
  const names = [...Object.keys(state.weights), perStep];
  const group = "ns-schedule";
  choice.replaceChildren(
    ...names.map((name) => {
      const input = make("input", {type: "radio", name: group, value: name});
      input.addEventListener("change", () => {
        state.schedule = name;
        state.curve = curveOf(state);
        if (name === perStep) state.curve[0] = 0;
        show();
        tell();
      });
      return make("label", {}, input, make("span", {}, name));
    }),
  );
  if (steps.childElementCount !== state.curve.length || steps.dataset.steps !== String(state.steps)) {
    steps.dataset.steps = String(state.steps);
    steps.replaceChildren(
      ...state.steps.map((grid, i) => {
        const input = make("input", {type: "range", min: 0, max: top, step: 0.05, "aria-label": `β at step ${i + 1}, ${grid}`});
        input.disabled = i === 0;
        input.addEventListener("input", () => stepMoved(i, input.value, false));
        input.addEventListener("change", () => stepMoved(i, input.value, true));
        return make("label", {}, input, make("span", {}, grid));
      }),
    );
  }
  show();
};
watch("value", build);
build();
