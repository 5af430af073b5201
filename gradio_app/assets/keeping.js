// @ts-check
// Files and links: downloads, uploads, the address, and the circuits that this browser keeps.

import { editText } from "./edits.js";
import { packState, unpackState } from "./links.js";
import { make } from "../../circuitsae/export/assets/elements.js";
import { offer } from "../../circuitsae/export/assets/save.js";
import { cut } from "../../circuitsae/export/assets/text.js";

const LONGEST_ADDRESS = 12000;
const KEPT = 8; // circuits
const LARGEST_KEPT = 8e6; // characters

export async function download(bench, format) {
  const { edits } = bench.basket;
  const shown = { state: bench.view.getState(), edits, options: bench.options };
  if (edits.length && bench.result && format === "html") {
    const { circuit } = bench.view;
    shown.overlay = { before: bench.result.before, after: bench.result.after, marks: bench.marks() };
    shown.note = `Interventions: ${edits.map((edit) => `${circuit.name(circuit.row.get(edit.key))} ${circuit.place(circuit.row.get(edit.key))} ${editText(edit)}`).join("; ")}.\n${bench.summary().text}.`;
  }
  bench.say("Writing the file");
  try {
    const { files, error } = await bench.wire.server.files({ id: bench.shown.id, format, shown });
    bench.say("");
    if (error) return bench.complain(error);
    for (const [name, text] of Object.entries(files)) offer(new Blob([text]), name);
  } catch {
    bench.complain("The app can't be reached; is it still running?", () => download(bench, format));
  }
}

export async function upload(bench, file) {
  const { uploads } = bench.wire.props.limits;
  if (file.size > uploads)
    return bench.complain(
      `${file.name} has ${file.size.toLocaleString("en-US")} bytes; at most ${uploads.toLocaleString("en-US")} are read here.`,
    );
  bench.say(`Reading ${cut(file.name, 40)}`);
  try {
    const { id, error } = await bench.wire.server.upload_circuit(await file.text());
    bench.say("");
    if (error) return bench.complain(error);
    bench.send("opened", { id });
  } catch {
    bench.complain("The file could not be sent; is the app still running?");
  }
}

/** What a link holds. */
export function stateOf(bench) {
  const shown = bench.shown && bench.shown.form ? bench.shown : bench.before;
  if (!shown || !shown.form) return null;
  const { basket, options, tab } = bench;
  return { v: 1, form: shown.form, basket: basket.edits, options, view: bench.view.getState(), tab };
}

/** The address that brings back what is on the screen. */
async function addressOf(state) {
  const address = new URL(window.location.href);
  address.search = `?c=${await packState(state)}`;
  address.hash = "";
  return address.href;
}

/** Has the browser's address carry what is on the screen, a little later and once; for a reload, or an app that restarts. */
export function remember(bench, delay = 400) {
  clearTimeout(bench.remembering);
  return new Promise((done) => {
    bench.remembering = setTimeout(async () => {
      const state = bench.view && stateOf(bench);
      const text = state ? await addressOf(state) : "";
      // What is too long for a server's taste is left to Copy link.
      if (text && text.length < LONGEST_ADDRESS) window.history.replaceState(window.history.state, "", text);
      done();
    }, delay);
  });
}

export async function copyLink(bench) {
  const state = stateOf(bench);
  if (!state) return bench.complain("This circuit came from a file; a link can't hold it. Download it instead.");
  const text = await addressOf(state);
  bench.root.dataset.link = text;
  try {
    await navigator.clipboard.writeText(text);
    bench.say("Link copied.");
  } catch {
    const field = make("input", { readonly: true, value: text, "aria-label": "Link" });
    bench.problem.replaceChildren(make("span", { text: "Copy this link:" }), field);
    bench.problem.hidden = false;
    field.select();
  }
}

/** Does something with the circuits that this browser keeps; undefined where it keeps none. */
function withCircuits(mode, work) {
  return new Promise((done) => {
    const fail = () => done(undefined); // a private window, or a full disk: then nothing is kept
    let opening;
    try {
      opening = window.indexedDB.open("circuitsae", 1);
    } catch {
      return fail();
    }
    opening.onupgradeneeded = () => opening.result.createObjectStore("circuits");
    opening.onerror = opening.onblocked = fail;
    opening.onsuccess = () => {
      const database = opening.result;
      const changes = database.transaction("circuits", mode);
      const request = work(changes.objectStore("circuits"));
      changes.oncomplete = () => {
        database.close();
        done(request && request.result);
      };
      changes.onerror = changes.onabort = fail;
    };
  });
}

/** Keeps a circuit in this browser, under what was asked for it; of all of them the last few. */
export async function keep(form, { payload, colours }) {
  if (payload.length > LARGEST_KEPT) return;
  await withCircuits("readwrite", (store) => store.put({ payload, colours, at: Date.now() }, JSON.stringify(form)));
  const names = await withCircuits("readonly", (store) => store.getAllKeys());
  const all = await withCircuits("readonly", (store) => store.getAll());
  if (!names || !all || names.length <= KEPT) return;
  const old = names.map((name, n) => [all[n].at, name]).sort(([a], [b]) => a - b);
  for (const [, name] of old.slice(0, names.length - KEPT))
    await withCircuits("readwrite", (store) => store.delete(name));
}

/** The circuit that the address asks for, as this browser kept it; null where it does not. */
export async function keptCircuit() {
  const packed = new URLSearchParams(window.location.search).get("c");
  if (!packed) return null;
  try {
    const state = await unpackState(packed);
    const found = await withCircuits("readonly", (store) => store.get(JSON.stringify(state.form)));
    if (!found) return null;
    const shown = { id: "kept", form: state.form, restore: { ...state, form: null }, kept: true };
    return { ...shown, payload: found.payload, colours: found.colours || [], shown };
  } catch {
    return null; // damaged: the app will say so
  }
}
