// @ts-check
// Files and links: downloads, uploads, the address.

import { editText } from "./edits.js";
import { packState } from "./links.js";
import { make } from "../../circuitsae/export/assets/elements.js";
import { offer } from "../../circuitsae/export/assets/save.js";
import { cut } from "../../circuitsae/export/assets/text.js";

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

export async function copyLink(bench) {
  const shown = bench.shown && bench.shown.form ? bench.shown : bench.before;
  if (!shown || !shown.form)
    return bench.complain("This circuit came from a file; a link can't hold it. Download it instead.");
  const view = bench.view.getState();
  const state = { v: 1, form: shown.form, basket: bench.basket.edits, options: bench.options, view, tab: bench.tab };
  const address = new URL(window.location.href);
  address.search = `?c=${await packState(state)}`;
  address.hash = "";
  const text = address.href;
  bench.root.dataset.link = text;
  try {
    await navigator.clipboard.writeText(text);
    bench.say("Link copied.");
  } catch {
    const field = make("input", { readonly: true, value: text, "aria-label": "Link" });
    bench.problem.replaceChildren(make("span", { text: "Copy bench link:" }), field);
    bench.problem.hidden = false;
    field.select();
  }
}
