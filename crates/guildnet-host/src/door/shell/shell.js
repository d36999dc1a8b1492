// Signs in with the code of `guildnet ui`, then shows the clusters. Texts are set as texts, never as HTML.
"use strict";

const CODE = /^#code=([A-Za-z0-9_-]{43})$/;
const REFRESH_MS = 5000;
// Beside the cookie, which browsers send to every port of this host: kept by this origin alone, port included.
const KEY = "guildnet-key";

const said = document.getElementById("said");
const fleet = document.getElementById("fleet");
const rows = fleet.querySelector("tbody");
const leave = document.getElementById("leave");
let timer = 0;

function say(text, tone) {
  if (said.textContent !== text) said.textContent = text;
  said.className = tone || "";
}

async function ask(method, path, body) {
  const request = { method, credentials: "same-origin", cache: "no-store", redirect: "error", headers: {} };
  const key = localStorage.getItem(KEY);
  if (key) request.headers["x-guildnet-key"] = key;
  if (body !== undefined) {
    request.headers["content-type"] = "application/json";
    request.body = JSON.stringify(body);
  }
  const answer = await fetch(path, request);
  if (answer.ok) return answer.status === 204 ? null : answer.json();
  const problem = await answer.json().catch(() => ({}));
  const error = new Error(problem.detail || "The Host App answered " + answer.status + ".");
  error.status = answer.status;
  throw error;
}

// Taken out of the address before anything else, so that it stays in no history and on no screen.
function takeCode() {
  const found = CODE.exec(location.hash);
  if (location.hash) history.replaceState(null, "", location.pathname);
  return found && found[1];
}

function signedOut(text) {
  clearTimeout(timer);
  localStorage.removeItem(KEY);
  fleet.hidden = true;
  leave.hidden = true;
  say(text || "You are not signed in. Run “guildnet ui” in a terminal: it opens this page signed in.");
}

function cell(text) {
  const td = document.createElement("td");
  td.textContent = text || "–";
  return td;
}

function row(cluster) {
  const tr = document.createElement("tr");
  const name = document.createElement("th");
  name.scope = "row";
  name.textContent = cluster.id;
  const state = cell(cluster.state.replace(/_/g, " "));
  state.className = cluster.usable ? "good" : "bad";
  if (cluster.detail !== cluster.state) state.title = cluster.detail;
  tr.append(name, state, cell(cluster.path), cell(cluster.router));
  return tr;
}

async function show() {
  clearTimeout(timer);
  try {
    const status = await ask("GET", "/api/v1/status");
    rows.replaceChildren(...status.clusters.map(row));
    fleet.hidden = status.clusters.length === 0;
    leave.hidden = false;
    const good = status.clusters.filter((cluster) => cluster.usable).length;
    say(status.clusters.length
      ? "Signed in. " + good + " of " + status.clusters.length + " clusters can be used."
      : "Signed in. No cluster is known yet: guildnet up --cluster ID=KUBECONFIG");
  } catch (error) {
    if (error.status === 401) return signedOut();
    say(error.status ? error.message : "The Host App does not answer.", "bad");
  }
  timer = setTimeout(show, REFRESH_MS);
}

leave.addEventListener("click", async () => {
  leave.disabled = true;
  try {
    await ask("POST", "/api/v1/logout");
    signedOut("Signed out.");
  } catch (error) {
    if (error.status === 401) signedOut();
    else say(error.message, "bad");
  }
  leave.disabled = false;
});

async function enter() {
  const code = takeCode();
  if (code) {
    try {
      localStorage.setItem(KEY, (await ask("POST", "/api/v1/login", { code })).key);
    } catch (error) {
      // A page that was signed in before still is.
      const before = await ask("GET", "/api/v1/status").then(() => true, () => false);
      if (!before) return signedOut("This link does not work any more: each one works once, within a minute. Run “guildnet ui” again.");
    }
  }
  await show();
}

window.addEventListener("hashchange", () => { if (CODE.test(location.hash)) enter(); });
document.addEventListener("visibilitychange", () => { if (!document.hidden && !leave.hidden) show(); });
enter();
