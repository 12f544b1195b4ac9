"use strict";
/* The walk: strips over time that share a cursor, and one unit's equations at one step. */
(() => {
  const { data, el, drawn, unpack, written, texts, isDark, colour, quiet } = Page;
  const $ = (id) => document.getElementById(id);
  const T = data.steps, STEP_WIDTHS = [1, 2, 3, 5, 7, 9, 12, 16, 22, 30, 44];
  const NAMES = {
    LSTM: {
      f: "forget gate", i: "input gate", g: "candidate", o: "output gate", c: "cell state", h: "output",
    },
    GRU: { z: "update gate", r: "reset gate", n: "candidate", h: "output" },
    RNN: { h: "output" },
  };
  const SIGNS = { Sigmoid: "σ", Tanh: "tanh", HardSigmoid: "hard-σ", Relu: "relu" };
  const SIGNAL_COLOURS = ["c", "f", "i", "o", "g", "h"];
  const chosen = { layer: 0, row: 0, unit: 0, step: 0, phase: 0, order: "file", width: 0, first: 0 };
  let hovered = null, playing = null;
  const labels = data.labels && texts(data.labels);
  const tracks = data.tracks.map((track) => ({ name: track.name, words: track.words, at: texts(track).at }));
  const signals = ["inputs", "outputs"].map((kind) => data[kind].map((s) => ({ name: s.name, ...unpack(s) })));
  const candidates = data.candidates && {
    count: data.candidates.count, words: texts(data.candidates.words), follows: texts(data.candidates.follows),
    probabilities: unpack(data.candidates.probabilities), likelihood: unpack(data.candidates.likelihood),
  };

  if (!data.layers.length || !T) {
    $("main").replaceChildren(el("p", {}, "There is no recurrent layer in this run to show."));
    return;
  }

  // --- values ---------------------------------------------------------------------------------------------------

  const unpackedLayers = new Map();
  function layer() {
    if (!unpackedLayers.has(chosen.layer)) {
      const held = data.layers[chosen.layer], parts = {};
      for (const [part, packing] of Object.entries(held.parts)) parts[part] = unpack(packing);
      unpackedLayers.set(chosen.layer, { ...held, parts, names: NAMES[held.op], orders: new Map() });
    }
    return unpackedLayers.get(chosen.layer);
  }
  const place = (step, unit) => (chosen.row * T + step) * layer().units + unit;
  const value = (part, step = chosen.step, unit = chosen.unit) => layer().parts[part].at(place(step, unit));
  const shown = (part, step = chosen.step, unit = chosen.unit) => layer().parts[part].text(place(step, unit));
  const before = (step) => (layer().backwards ? step + 1 : step - 1);
  const exists = (step) => step >= 0 && step < T;

  const CONTROLS = { "\n": "⏎", "\t": "⇥", " ": "␣", "\r": "␍", "": "∅" };
  const visible = (text) => [...text].map((sign) => CONTROLS[sign] || (sign < " " ? "�" : sign)).join("") || "∅";
  const label = (step) => (labels ? visible(labels.at(chosen.row * T + step)) : null);
  const called = (step) => `step ${step + 1}` + (labels ? ` ‘${label(step)}’` : "");

  /** Units in the order in which they are drawn, from the top. */
  function order() {
    const orders = layer().orders;
    if (!orders.has(chosen.order)) {
      const units = Array.from({ length: layer().units }, (_, unit) => unit);
      const by = layer().statistics[chosen.order];
      const rank = (unit) => (by[unit] === null ? Infinity : by[unit]);
      if (by) units.sort((a, b) => (rank(b) === rank(a) ? a - b : rank(b) - rank(a)));
      const places = new Int32Array(units.length);
      units.forEach((unit, at) => { places[unit] = at; });
      orders.set(chosen.order, { units, places });
    }
    return orders.get(chosen.order);
  }

  // --- colours --------------------------------------------------------------------------------------------------

  const STOPS = {
    light: {
      gate: [[250, 251, 253], [176, 203, 232], [60, 120, 190], [10, 45, 105]],
      signed: [[130, 55, 8], [226, 150, 84], [250, 250, 251], [92, 168, 163], [4, 78, 84]],
    },
    dark: {
      gate: [[20, 25, 34], [28, 72, 124], [72, 152, 216], [218, 241, 255]],
      signed: [[255, 196, 130], [166, 90, 34], [20, 25, 34], [26, 122, 122], [146, 238, 224]],
    },
  };
  function ramp(stops) {
    const made = new Uint32Array(256);
    for (let at = 0; at < 256; at++) {
      const along = (at / 255) * (stops.length - 1), low = Math.min(Math.floor(along), stops.length - 2), part = along - low;
      const [r, g, b] = stops[low].map((from, k) => Math.round(from + part * (stops[low + 1][k] - from)));
      made[at] = (255 << 24) | (b << 16) | (g << 8) | r;
    }
    return made;
  }
  const ramps = {};
  function rampOf(kind) {
    const key = (isDark() ? "dark" : "light") + kind;
    return (ramps[key] ||= ramp(STOPS[isDark() ? "dark" : "light"][kind]));
  }
  const isGate = (part) => "fiozr".includes(part) && layer().parts[part].greatest <= 1;
  /** What the strongest colour stands for: 1, or where values go beyond it what all but a few of them stay within. */
  function reach(part) {
    const held = layer().parts[part];
    if (isGate(part) || held.greatest <= 1) return part === "c" ? held.greatest || 1 : 1;
    if (!held.reach) {
      const every = Math.max(1, Math.floor(held.codes.length / 20000)), sample = [];
      for (let at = 0; at < held.codes.length; at += every) if (Math.abs(held.codes[at]) < held.top) sample.push(Math.abs(held.codes[at]));
      sample.sort((a, b) => a - b);
      held.reach = sample[Math.floor(sample.length * 0.97)] / held.scale || 1;
    }
    return held.reach;
  }

  // --- strips ---------------------------------------------------------------------------------------------------

  const heat = el("div", {
    id: "heat", tabindex: "0", role: "application", "aria-roledescription": "heatmaps over time",
    "aria-label": "Heatmaps: units over time. Left and right arrows choose the step, up and down the unit, Page Up and Page Down go by ten, Home and End to the ends, space plays.",
    "aria-describedby": "hovered",
  });
  let strips = [];

  function strip(name, height, paint, mapped) {
    const base = el("canvas", { "aria-hidden": "true" }), over = el("canvas", { "aria-hidden": "true" });
    const plot = el("div", { class: "plot" }, base, over);
    plot.style.height = `${height}px`;
    heat.append(el("div", { class: "strip" }, el("div", { class: "name" }, ...name), plot));
    const made = { plot, base, over, height, paint, mapped };
    listen(made);
    strips.push(made);
  }

  function build() {
    heat.replaceChildren();
    strips = [];
    const rows = layer().units, height = Math.min(Math.max(rows * 6, 60), 168);
    const long = labels && !data.joined;
    strip([labels ? "text" : "step"], long ? 76 : 24, paintAxis);
    for (const track of tracks) strip([track.name], 18, (...args) => paintTrack(track, ...args));
    signals.forEach((kind, at) => {
      if (kind.length) strip([...keys(kind), at ? "out" : "in"], 64, (...args) => paintCurves(curvesOf(kind), ...args));
    });
    for (const part of Object.keys(layer().parts)) {
      strip([el("b", { class: part }, part), " ", el("br"), layer().names[part]], height, (...args) => paintMap(part, ...args), part);
    }
    strip([el("b", {}, "unit"), " ", ...keysOfParts()], 130, (...args) => paintCurves(unitCurves(), ...args));
  }

  const keyed = (name, text) => {
    const key = el("span", { class: "key" });
    key.style.background = `var(--${name})`;
    return [key, text, " "];
  };
  const keys = (kind) => (kind.length < 2 ? [`${kind[0].name} `] : kind.flatMap((s, at) => keyed(SIGNAL_COLOURS[at % 6], s.name)));
  const keysOfParts = () => Object.keys(layer().parts).flatMap((part) => keyed(part, part === "c" ? "c (to its own scale)" : part));
  const curvesOf = (kind) => {
    const top = Math.max(...kind.map((s) => s.greatest), 1e-9);
    return kind.map((s, at) => ({ colour: SIGNAL_COLOURS[at % 6], top, at: (step) => s.at(chosen.row * T + step) }));
  };
  const unitCurves = () => Object.keys(layer().parts).map((part) => ({
    colour: part, top: part === "c" ? highest(part) : Math.max(layer().parts[part].greatest, 1), at: (step) => value(part, step), bold: part === "c" || part === "h",
  }));
  /** The greatest of the chosen unit's values. */
  function highest(part) {
    let most = 1e-9;
    for (let step = 0; step < T; step++) if (Math.abs(value(part, step)) > most) most = Math.abs(value(part, step));
    return most;
  }

  const plotWidth = () => strips[0].plot.clientWidth || 300;
  const fitting = () => plotWidth() / T;
  const stepWidth = () => chosen.width || fitting();
  const inView = () => Math.min(T, Math.max(1, Math.floor(plotWidth() / stepWidth() + 1e-6)));
  const left = (step) => (step - chosen.first) * stepWidth();

  function context(canvas, width, height) {
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.max(1, Math.round(width * ratio));
    canvas.height = Math.max(1, Math.round(height * ratio));
    const made = canvas.getContext("2d");
    made.setTransform(ratio, 0, 0, ratio, 0, 0);
    return made;
  }

  function paint() {
    const width = plotWidth();
    for (const s of strips) s.paint(context(s.base, width, s.height), width, s.height);
    mark();
  }

  /** Cells in sight at one pixel each, then stretched: what a heatmap costs is what is seen of it. */
  function paintMap(part, pen, width, height) {
    const { codes, scale, top } = layer().parts[part], { units } = order();
    const from = chosen.first, count = Math.min(T - from, Math.ceil(width / stepWidth()));
    const gate = isGate(part), colours = rampOf(gate ? "gate" : "signed"), most = reach(part) * scale;
    const strange = isDark() ? 0xffff60ff : 0xffc000c0, size = units.length;
    const picture = new ImageData(count, size), cells = new Uint32Array(picture.data.buffer);
    for (let at = 0; at < count; at++) {
      const start = place(from + at, 0);
      for (let r = 0; r < size; r++) {
        const code = codes[start + units[r]];
        const part01 = gate ? code / most : (code / most + 1) / 2;
        cells[r * count + at] = Math.abs(code) >= top ? strange : colours[Math.min(255, Math.max(0, Math.round(part01 * 255)))];
      }
    }
    const sheet = Object.assign(document.createElement("canvas"), { width: count, height: size });
    sheet.getContext("2d").putImageData(picture, 0, 0);
    pen.imageSmoothingEnabled = stepWidth() < 1 || size > height * (window.devicePixelRatio || 1);
    pen.imageSmoothingQuality = "high";
    pen.drawImage(sheet, 0, 0, count * stepWidth(), height);
  }

  function paintAxis(pen, width, height) {
    const from = chosen.first, wide = stepWidth(), least = data.joined ? 7 : 11;
    pen.fillStyle = colour("ink");
    pen.textBaseline = "middle";
    pen.font = '12px ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace';
    if (labels && wide >= least) {
      for (let step = from; step < T && left(step) < width; step++) {
        const text = label(step).slice(0, 24);
        if (data.joined) {
          pen.textAlign = "center";
          pen.fillText(text, left(step) + wide / 2, height / 2, wide * 1.6);
        } else {
          pen.save();
          pen.translate(left(step) + wide / 2, height - 4);
          pen.rotate(-Math.PI / 2.6);
          pen.textAlign = "left";
          pen.fillText(text, 0, 0, height * 1.05);
          pen.restore();
        }
      }
      return;
    }
    const every = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000, 50000].find((n) => n * wide >= 48) || 100000;
    pen.textAlign = "left";
    pen.strokeStyle = colour("soft");
    for (let step = Math.ceil(from / every) * every; step < T && left(step) < width; step += every) {
      pen.fillText(String(step + 1), left(step) + 3, height / 2);
      pen.fillRect(left(step), height - 6, 1, 6);
    }
  }

  function paintTrack(track, pen, width, height) {
    pen.font = "11px system-ui, sans-serif";
    pen.textBaseline = "middle";
    for (let step = chosen.first; step < T && left(step) < width; ) {
      const word = track.at(step);
      let end = step + 1;
      while (end < T && track.at(end) === word && left(end) < width) end++;
      if (word) {
        const hue = SIGNAL_COLOURS[track.words.indexOf(word) % 6];
        pen.fillStyle = colour(hue);
        pen.fillRect(left(step), height - 4, left(end) - left(step) - 1, 4);
        pen.save();
        pen.beginPath();
        pen.rect(left(step), 0, left(end) - left(step), height);
        pen.clip();
        pen.fillStyle = colour("ink");
        pen.fillText(word, left(step) + 2, height / 2 - 2);
        pen.restore();
      }
      step = end;
    }
  }

  function paintCurves(curves, pen, width, height) {
    const middle = height / 2;
    pen.fillStyle = colour("line");
    pen.fillRect(0, middle, width, 1);
    for (const curve of curves) {
      pen.strokeStyle = colour(curve.colour);
      pen.lineWidth = curve.bold ? 2 : 1.2;
      pen.beginPath();
      let on = false;
      for (let step = chosen.first; step < T && left(step) < width; step++) {
        const v = curve.at(step);
        if (!Number.isFinite(v)) { on = false; continue; }
        const y = middle - (v / curve.top) * (middle - 3), x = left(step) + stepWidth() / 2;
        if (on) pen.lineTo(x, y); else pen.moveTo(x, y);
        on = true;
      }
      pen.stroke();
    }
  }

  /** The cursor on every strip. */
  function mark() {
    const width = plotWidth(), wide = Math.max(stepWidth(), 2), { places, units } = order();
    for (const s of strips) {
      const pen = context(s.over, width, s.height), tall = s.height / units.length;
      const line = (step, unit, hue, thick) => {
        pen.strokeStyle = colour(hue);
        pen.lineWidth = thick;
        pen.strokeRect(left(step) + 0.5, 1, wide - 1, s.height - 2);
        if (!s.mapped) return;
        const y = (places[unit] + 0.5) * tall;
        pen.fillStyle = colour(hue);
        pen.fillRect(0, y - thick / 2, width, thick);
      };
      if (hovered) line(hovered.step, hovered.unit ?? chosen.unit, "hover", 0.8);
      line(chosen.step, chosen.unit, "cursor", 1.5);
    }
  }

  function pointed(event, s) {
    const box = s.plot.getBoundingClientRect(), rows = order().units;
    const step = Math.min(T - 1, Math.max(0, chosen.first + Math.floor((event.clientX - box.left) / stepWidth())));
    const row = Math.floor(((event.clientY - box.top) / box.height) * rows.length);
    return { step, unit: s.mapped ? rows[Math.min(rows.length - 1, Math.max(0, row))] : undefined };
  }

  function listen(s) {
    const pick = (event) => {
      const at = pointed(event, s);
      choose({ step: at.step, unit: at.unit ?? chosen.unit });
    };
    s.plot.addEventListener("pointermove", (event) => {
      hovered = pointed(event, s);
      if (event.buttons & 1) pick(event); else { mark(); tellHovered(); }
    });
    s.plot.addEventListener("pointerleave", () => { hovered = null; mark(); tellHovered(); });
    s.plot.addEventListener("pointerdown", (event) => { stop(); pick(event); });
    s.plot.addEventListener("wheel", (event) => {
      const by = event.deltaX || (event.shiftKey ? event.deltaY : 0);
      if (!by) return;
      event.preventDefault();
      scrollTo(chosen.first + Math.round(by / stepWidth()) || chosen.first + Math.sign(by));
      paint();
    }, { passive: false });
  }

  function tellHovered() {
    const { step, unit } = { step: chosen.step, unit: chosen.unit, ...(hovered || {}) };
    const of = unit ?? chosen.unit;
    const parts = Object.keys(layer().parts).map((part) => `${part} ${shown(part, step, of)}`);
    const more = signals.flat().slice(0, 4).map((s) => `${s.name} ${s.text(chosen.row * T + step)}`);
    const told = tracks.map((track) => track.at(step)).filter((word) => word).map((word) => ` · ${word}`).join("");
    $("hovered").textContent = `${called(step)}${told} · unit ${of} · ${[...parts, ...more].join(", ")}`;
  }

  // --- choosing -------------------------------------------------------------------------------------------------

  const limited = (number, least, most) => Math.min(most, Math.max(least, Number.isFinite(number) ? Math.round(number) : least));
  const scrollTo = (first) => { chosen.first = limited(first, 0, Math.max(0, T - inView())); };

  function choose(change, announce = false) {
    const other = change.layer !== undefined && change.layer !== chosen.layer;
    const was = { ...chosen };
    Object.assign(chosen, change);
    if (change.step !== undefined && change.phase === undefined) chosen.phase = 0;
    chosen.step = limited(chosen.step, 0, T - 1);
    chosen.unit = limited(chosen.unit, 0, layer().units - 1);
    if (other) {
      if (!layer().statistics[chosen.order]) chosen.order = "file";
      build();
      fillOrders();
    }
    if (chosen.step < chosen.first) scrollTo(chosen.step - Math.floor(inView() / 4));
    if (chosen.step >= chosen.first + inView()) scrollTo(chosen.step - Math.floor((inView() * 3) / 4));
    scrollTo(chosen.first);
    const same = ["layer", "row", "unit", "order", "width", "first"].every((key) => was[key] === chosen[key]);
    if (same) mark(); else paint();
    show(was);
    if (announce) tell();
  }

  function show(was = {}) {
    inputs.layer.value = chosen.layer;
    inputs.unit.value = chosen.unit;
    inputs.unit.max = layer().units - 1;
    inputs.step.value = chosen.step;
    inputs.step.setAttribute("aria-valuetext", called(chosen.step));
    if (inputs.row) inputs.row.value = chosen.row;
    if (hovered && !playing) hovered = null;
    tellHovered();
    showReading();
    showPhases();
    showCandidates();
    if (was.layer !== chosen.layer || was.unit !== chosen.unit) showUnit();
    if (was.layer !== chosen.layer || was.row !== chosen.row) showMoments();
    if (was.layer !== chosen.layer || was.order !== chosen.order) showUnits();
  }

  function tell() {
    const parts = Object.keys(layer().parts).map((part) => `${part} ${shown(part)}`);
    $("told").textContent = `${called(chosen.step)}, unit ${chosen.unit}: ${parts.join(", ")}`;
  }

  heat.addEventListener("keydown", (event) => {
    const { units, places } = order();
    const unitBy = (by) => units[limited(places[chosen.unit] + by, 0, units.length - 1)];
    const moves = {
      ArrowLeft: () => ({ step: chosen.step - 1 }), ArrowRight: () => ({ step: chosen.step + 1 }),
      ArrowUp: () => ({ unit: unitBy(-1) }), ArrowDown: () => ({ unit: unitBy(1) }),
      PageUp: () => ({ step: chosen.step - 10 }), PageDown: () => ({ step: chosen.step + 10 }),
      Home: () => ({ step: 0 }), End: () => ({ step: T - 1 }),
    };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === " ") { event.preventDefault(); toggle(); return; }
    if (!moves[event.key]) return;
    event.preventDefault();
    stop();
    choose(moves[event.key](), true);
  });

  // --- controls -------------------------------------------------------------------------------------------------

  const inputs = {};
  const labelled = (text, control, wide) => el("label", wide ? { class: "wide" } : {}, text, control);

  function controls() {
    inputs.layer = el("select", { id: "layer", onchange: (e) => choose({ layer: Number(e.target.value) }) },
      ...data.layers.map((each, at) => el("option", { value: at }, `${each.name} (${each.op}, ${each.units})`)));
    inputs.unit = el("input", { id: "unit", type: "number", min: 0, onchange: (e) => choose({ unit: Number(e.target.value) }) });
    inputs.step = el("input", { id: "step", type: "range", min: 0, max: T - 1, step: 1, oninput: (e) => { stop(); choose({ step: Number(e.target.value) }); } });
    inputs.order = el("select", { id: "order", onchange: (e) => choose({ order: e.target.value }) });
    inputs.play = el("button", { type: "button", id: "play", onclick: toggle }, "Play");
    if (data.rows > 1) {
      inputs.row = el("select", { id: "row", onchange: (e) => choose({ row: Number(e.target.value) }) },
        ...Array.from({ length: data.rows }, (_, row) => el("option", { value: row }, String(row))));
    }
    const by = (step) => () => { stop(); choose({ step: chosen.step + step }, true); };
    const zoom = (way) => () => {
      const wider = STEP_WIDTHS.filter((width) => (way > 0 ? width > stepWidth() + 0.01 : width < stepWidth() - 0.01));
      const width = way > 0 ? wider[0] : wider[wider.length - 1];
      if (!width) return;
      chosen.width = width;
      scrollTo(chosen.step - Math.floor(inView() / 2));
      paint();
    };
    const all = () => { chosen.width = 0; chosen.first = 0; paint(); };
    $("controls").append(
      labelled("Layer", inputs.layer), ...(inputs.row ? [labelled("Row", inputs.row)] : []), labelled("Unit", inputs.unit),
      labelled("Units in the order of", inputs.order), labelled("Step", inputs.step, true),
      el("div", { class: "buttons", role: "group", "aria-label": "Go through the steps" },
        el("button", { type: "button", id: "back", "aria-label": "One step back", onclick: by(-1) }, "◀"), inputs.play,
        el("button", { type: "button", id: "on", "aria-label": "One step on", onclick: by(1) }, "▶")),
      el("div", { class: "buttons", role: "group", "aria-label": "Width of a step" },
        el("button", { type: "button", "aria-label": "Narrower steps", onclick: zoom(-1) }, "−"),
        el("button", { type: "button", onclick: all }, "All"),
        el("button", { type: "button", "aria-label": "Wider steps", onclick: zoom(1) }, "+")),
    );
  }

  const ORDERS = {
    memory: "how long they remember", "range.c": "the range of c", "range.h": "the range of h", "mean.f": "how open f is", "mean.z": "how open z is",
  };
  function fillOrders() {
    const there = Object.keys(ORDERS).filter((name) => layer().statistics[name]);
    inputs.order.replaceChildren(el("option", { value: "file" }, "the file"), ...there.map((name) => el("option", { value: name }, ORDERS[name])));
    inputs.order.value = chosen.order;
  }

  // --- playing --------------------------------------------------------------------------------------------------

  function toggle() { if (playing) stop(); else play(); }
  function stop() {
    clearTimeout(playing);
    playing = null;
    inputs.play.textContent = "Play";
  }
  function play() {
    inputs.play.textContent = "Pause";
    const phases = PHASES[layer().op].length, whole = quiet.matches || phases === 1;
    const last = chosen.step === T - 1 && (whole || chosen.phase === phases - 1);
    if (last) choose({ step: 0 });
    const tick = () => {
      if (!whole && chosen.phase < phases - 1) choose({ phase: chosen.phase + 1 });
      else if (chosen.step < T - 1) choose({ step: chosen.step + 1, phase: 0 });
      else { stop(); return; }
      playing = setTimeout(tick, whole ? 900 : 550);
    };
    playing = setTimeout(tick, 400);
  }

  // --- one unit, one step ---------------------------------------------------------------------------------------

  const sign = (at) => SIGNS[layer().functions[at]] || (layer().functions[at] || "φ").toLowerCase();
  const number = (v) => written(v, Math.max(...Object.values(layer().parts).map((p) => p.digits)));
  const named = (part) => el("span", { class: part }, part);
  const known = (part, step) => el("b", { class: part }, shown(part, step));
  const made = (part, at) => [named(part), " = ", `${sign(at)}(W`, el("sub", {}, part), " x + R", el("sub", {}, part), " h′ + b", el("sub", {}, part), ") = ", known(part)];
  const percent = (v) => (Number.isFinite(v) ? `${Math.round(v * 100)} %` : "an unknown part");

  /** What of the old state was kept: the old value if it is on the page, else what the new one leaves for it. */
  function kept(gate, memory, rest) {
    const prior = before(chosen.step);
    if (exists(prior)) return { old: shown(memory, prior), amount: value(gate) * value(memory, prior) };
    const amount = value(memory) - rest;
    const coarsest = Math.min(...Object.values(layer().parts).map((part) => part.scale));
    const none = Math.abs(amount) < 5 / coarsest; // what rounding leaves of nothing
    return none ? { old: "0", amount: 0 } : { old: "what it began with", amount };
  }

  const PHASES = {
    LSTM: [
      ["Forget", () => [[...made("f", 0)], `keeps ${percent(value("f"))} of the old cell state`]],
      ["Store", () => [[...made("i", 0), el("br"), ...made("g", 1)], `offers i · g = ${number(value("i") * value("g"))}`]],
      ["Update the cell", () => {
        const { old, amount } = kept("f", "c", value("i") * value("g"));
        return [[named("c"), " = ", named("f"), " · c′ + ", named("i"), " · ", named("g"), " = ", known("f"), " · ", el("b", {}, old), " + ", known("i"), " · ", known("g"), " = ", known("c")],
          `${number(amount)} kept, ${number(value("i") * value("g"))} written`];
      }],
      ["Show", () => [[...made("o", 0), el("br"), named("h"), " = ", named("o"), ` · ${sign(2)}(`, named("c"), ") = ", known("o"), ` · ${sign(2)}(`, known("c"), ") = ", known("h")],
        `shows ${percent(value("o"))} of what the cell holds`]],
    ],
    GRU: [
      ["Update gate", () => [[...made("z", 0)], `keeps ${percent(value("z"))} of the old state`]],
      ["Reset gate", () => [[...made("r", 0)], `lets ${percent(value("r"))} of the past into the candidate`]],
      ["Candidate", () => [[named("n"), " = ", `${sign(1)}(W`, el("sub", {}, "n"), " x + the past through ", named("r"), ") = ", known("n")], "the value it could take"]],
      ["Update", () => {
        const { old, amount } = kept("z", "h", (1 - value("z")) * value("n"));
        return [[named("h"), " = (1 − ", named("z"), ") · ", named("n"), " + ", named("z"), " · h′ = (1 − ", known("z"), ") · ", known("n"), " + ", known("z"), " · ", el("b", {}, old), " = ", known("h")],
          `${number(amount)} kept, ${number((1 - value("z")) * value("n"))} written`];
      }],
    ],
    RNN: [["Update", () => [[...made("h", 0)], "no gate: all of it is new"]]],
  };

  function showPhases() {
    const lit = quiet.matches && playing ? -1 : chosen.phase;
    $("which").textContent = `Unit ${chosen.unit} at ${called(chosen.step)}`;
    $("phases").replaceChildren(...PHASES[layer().op].map(([name, contents], at) => {
      const [equation, remark] = contents();
      return el("div", { class: at === lit ? "phase now" : "phase" }, el("h3", {}, `${at + 1} ${name}`), el("div", { class: "equation" }, ...equation), el("p", {}, remark));
    }));
    showCell(lit);
  }

  /** The cell as a picture: the conveyor of c above, gates where they act, their numbers beside them. */
  function showCell(lit) {
    const picture = $("cell");
    picture.replaceChildren();
    picture.toggleAttribute("hidden", layer().op !== "LSTM");
    if (layer().op !== "LSTM") return;
    const { old } = kept("f", "c", value("i") * value("g"));
    const wire = (path, phase) => drawn("path", { d: path, class: phase === lit ? "wire lit" : "wire" });
    const text = (x, y, words, anchor = "middle") => drawn("text", { x, y, "text-anchor": anchor }, words);
    const knot = (x, y, what, phase) => drawn("g", { class: phase === lit ? "lit" : "" }, drawn("circle", { cx: x, cy: y, r: 13, class: "part" }), text(x, y + 4, what));
    picture.append(
      wire("M 70 40 H 380", 2), wire("M 120 110 V 53", 0), wire("M 200 160 V 123", 1), wire("M 265 110 H 213", 1), wire("M 200 97 V 53", 2),
      wire("M 330 40 V 87", 3), wire("M 330 113 V 150 H 380", 3), wire("M 265 160 V 110", 1), wire("M 380 100 H 343", 3),
      knot(120, 40, "×", 0), knot(200, 40, "+", 2), knot(200, 110, "×", 1), knot(330, 100, "×", 3),
      text(64, 44, `c′ ${old.startsWith("what") ? "?" : old}`, "end"), text(386, 44, `c ${shown("c")}`, "start"), text(120, 126, `f ${shown("f")}`),
      text(190, 176, `i ${shown("i")}`, "middle"), text(270, 176, `g ${shown("g")}`, "middle"), text(338, 72, sign(2), "start"),
      text(386, 104, `o ${shown("o")}`, "start"), text(386, 154, `h ${shown("h")}`, "start"),
    );
  }

  const SPAN = 160;
  function showReading() {
    if (!labels) return;
    const text = (from, to) => Array.from({ length: Math.max(0, to - from) }, (_, k) => labels.at(chosen.row * T + from + k)).join(data.joined ? "" : " ");
    const gap = data.joined ? "" : " ", at = chosen.step, now = labels.at(chosen.row * T + at);
    const from = Math.max(0, at - SPAN), to = Math.min(T, at + 1 + SPAN);
    const current = el("mark", {}, data.joined && /^\s*$/.test(now) ? visible(now) + (now === "\n" ? "\n" : "") : now || "∅");
    $("reading").replaceChildren((from ? "… " : "") + text(from, at) + gap, current, el("span", { class: "later" }, gap + text(at + 1, to) + (to < T ? " …" : "")));
  }

  function showCandidates() {
    if (!candidates) return;
    const at = chosen.row * T + chosen.step, follows = candidates.follows.at(at);
    const rows = Array.from({ length: candidates.count }, (_, k) => {
      const index = at * candidates.count + k, word = candidates.words.at(index), came = follows !== "" && word === follows;
      const bar = drawn("svg", { viewBox: "0 0 100 8", preserveAspectRatio: "none", "aria-hidden": "true" },
        drawn("rect", { x: 0, y: 0, height: 8, width: Math.max(0, candidates.probabilities.at(index) * 100) || 0 }));
      return el("tr", came ? { class: "came" } : {}, el("td", {}, el("span", { class: "word" }, visible(word)), came ? " ← came" : ""), el("td", {}, bar), el("td", { class: "number" }, candidates.probabilities.text(index)));
    });
    $("next").replaceChildren(...rows);
    $("came").textContent = follows === "" ? "Nothing follows here." : `‘${visible(follows)}’ came, with probability ${candidates.likelihood.text(at)}.`;
  }

  const digits = (v, n = 4) => (v === null || v === undefined ? "∞" : written(Number(v), n));
  function showUnit() {
    const of = layer().statistics, at = chosen.unit, facts = [];
    const gates = Object.keys(layer().parts).filter((part) => of[`mean.${part}`]);
    for (const part of gates) {
      facts.push([`${part}, ${layer().names[part]}`, `mean ${digits(of[`mean.${part}`][at])}; shut ${percent(of[`shut.${part}`][at])}, open ${percent(of[`open.${part}`][at])} of the steps`]);
    }
    for (const part of ["c", "h"]) if (of[`range.${part}`]) facts.push([`range of ${part}`, digits(of[`range.${part}`][at])]);
    if (of.memory) facts.push(["remembers for", of.memory[at] === null ? "ever" : `${digits(of.memory[at], 1)} steps (to 1/e)`]);
    facts.push(["is", of.dead[at] ? "dead: its output hardly moves" : "alive"]);
    $("unit-facts").replaceChildren(...facts.flatMap(([name, text]) => [el("dt", {}, name), el("dd", {}, text)]));
  }

  const KINDS = { forgotten: "Most forgotten at", updates: "Most written at" };
  function showMoments() {
    for (const [kind, title] of Object.entries(KINDS)) {
      const box = $(kind), found = layer().moments[kind] || [];
      const items = found.map(([step, row, unit, total]) => el("li", {}, el("button", {
        type: "button", onclick: () => { stop(); choose({ step, row, unit, phase: kind === "forgotten" ? 0 : 1 }, true); },
      }, `${called(step)}${data.rows > 1 ? `, row ${row}` : ""}: ${digits(total, 2)} over all units, most by unit ${unit}`)));
      box.hidden = !items.length;
      box.replaceChildren(el("h2", {}, title), el("ol", { class: "moments" }, ...items));
    }
  }

  const MOST_UNITS = 12;
  function showUnits() {
    const of = layer().statistics, gates = Object.keys(layer().parts).filter((part) => of[`mean.${part}`]);
    const dead = of.dead.filter(Boolean).length, { units } = order();
    const middle = of.memory && of.memory.filter((v) => v !== null).sort((a, b) => a - b);
    const saturated = gates.map((part) => {
      const mean = (name) => of[name].reduce((sum, v) => sum + v, 0) / of[name].length;
      return `${part} is shut at ${percent(mean(`shut.${part}`))} and open at ${percent(mean(`open.${part}`))}`;
    });
    $("layer-facts").textContent = `${layer().units} units, ${dead} of them dead` + (layer().backwards ? ", read from the last step to the first" : "")
      + (middle && middle.length ? `; half of them remember for more than ${digits(middle[middle.length >> 1], 1)} steps` : "")
      + (saturated.length ? `. Of all units and steps, ${saturated.join("; ")}.` : ".");
    const columns = [...gates.map((part) => [`mean ${part}`, `mean.${part}`]), ...["c", "h"].filter((p) => of[`range.${p}`]).map((p) => [`range of ${p}`, `range.${p}`]), ...(of.memory ? [["remembers", "memory"]] : [])];
    const head = el("tr", {}, el("th", { scope: "col" }, "unit"), ...columns.map(([name]) => el("th", { scope: "col", class: "number" }, name)));
    const rows = units.slice(0, MOST_UNITS).map((unit) => el("tr", {}, el("td", {}, el("button", { type: "button", "aria-label": `Unit ${unit}`, onclick: () => choose({ unit }, true) }, String(unit))),
      ...columns.map(([, name]) => el("td", { class: "number" }, digits(of[name][unit], name === "memory" ? 1 : 4)))));
    $("units").replaceChildren(el("caption", {}, `The first ${rows.length} in the order of ${chosen.order === "file" ? "the file" : ORDERS[chosen.order]}`), el("thead", {}, head), el("tbody", {}, ...rows));
  }

  function findings() {
    return data.findings.map((finding) => {
      const [head, ...rows] = finding.table;
      const table = head && el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": finding.heading }, el("table", {},
        el("thead", {}, el("tr", {}, ...head.map((cell) => el("th", { scope: "col" }, cell)))),
        el("tbody", {}, ...rows.map((row) => el("tr", {}, ...row.map((cell) => el("td", {}, cell)))))));
      const jumps = finding.jumps.map((jump) => el("li", {}, el("button", { type: "button", onclick: () => {
        const at = data.layers.findIndex((each) => each.name === jump.layer);
        stop();
        choose({ step: jump.step, ...(at < 0 ? {} : { layer: at }), ...(jump.unit === null ? {} : { unit: jump.unit }) }, true);
      } }, jump.text)));
      return el("section", { class: "whole finding" }, el("h2", {}, finding.heading), ...finding.paragraphs.map((text) => el("p", {}, text)), table, el("ol", { class: "moments" }, ...jumps));
    });
  }

  // --- the page -------------------------------------------------------------------------------------------------

  if (labels) $("maps").append(el("div", { id: "reading", tabindex: "0", role: "group", "aria-label": "The text around this step", dir: "auto" }));
  $("maps").append(el("p", { id: "hovered" }), heat);
  const picture = drawn("svg", { id: "cell", viewBox: "-30 0 510 190", "aria-hidden": "true" });
  $("walk").append(el("p", { id: "which" }), picture, el("div", { id: "phases" }));
  if (candidates) {
    $("walk").append(el("h3", {}, "What could come next"), el("p", { id: "came" }),
      el("table", { class: "candidates" }, el("thead", { class: "unseen" }, el("tr", {}, ...["token", "bar", "probability"].map((name) => el("th", { scope: "col" }, name)))), el("tbody", { id: "next" })));
  }
  $("walk").append(el("h3", {}, "This unit"), el("dl", { class: "facts", id: "unit-facts" }));
  $("more").append(...findings(), ...Object.keys(KINDS).map((kind) => el("section", { id: kind })),
    el("section", { class: "whole" }, el("h2", {}, "Units of the layer"), el("p", { id: "layer-facts" }),
      el("div", { class: "scroll", tabindex: "0", role: "group", "aria-label": "Table of units" }, el("table", { id: "units" }))));
  const first = data.findings.flatMap((finding) => finding.jumps).find((jump) => jump.unit !== null);
  if (first) {
    const at = data.layers.findIndex((each) => each.name === first.layer);
    Object.assign(chosen, { step: first.step, unit: first.unit, ...(at < 0 ? {} : { layer: at }) });
  }
  controls();
  build();
  fillOrders();
  chosen.width = labels ? (data.joined ? 9 : 30) : 0;
  if (chosen.width && chosen.width * T < plotWidth()) chosen.width = Math.min(44, fitting());
  choose({});
  paint();
  show();
  Page.onTheme(paint);
  let drawnWidth = plotWidth();
  new ResizeObserver(() => {
    if (plotWidth() === drawnWidth) return;
    drawnWidth = plotWidth();
    scrollTo(chosen.first);
    paint();
  }).observe(heat);
})();
