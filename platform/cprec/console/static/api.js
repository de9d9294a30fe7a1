// What the page asks of the console. The token goes with each request, and to nobody else.

const TOKEN = "cprec-token";
const NAME = "cprec-name";

/** Takes the token out of the address, so that neither history nor bookmarks keep it. */
export function takeToken() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(TOKEN, given);
    history.replaceState(null, "", location.pathname + "#/runs");
  }
}

export const session = {
  get token() { return sessionStorage.getItem(TOKEN); },
  get name() { return localStorage.getItem(NAME) ?? ""; },
  set(token, name) {
    sessionStorage.setItem(TOKEN, token);
    if (name) localStorage.setItem(NAME, name);
    else localStorage.removeItem(NAME);
  },
  forget() { sessionStorage.removeItem(TOKEN); },
};

/** An answer that says why it is none. */
export class Refusal extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, options = {}) {
  const response = await fetch(path, {
    ...options,
    cache: "no-store",
    credentials: "omit",
    headers: { Authorization: `Bearer ${session.token ?? ""}`, ...options.headers },
  });
  if (response.ok) return response;
  const problem = await response.json().catch(() => ({}));
  if (response.status === 401) document.dispatchEvent(new Event("signed-out"));
  throw new Refusal(response.status, problem.error ?? `the console answered ${response.status}`);
}

export async function get(path) {
  return (await ask(path)).json();
}

export async function post(path, body, name) {
  const response = await ask(path, {
    method: "POST",
    body: JSON.stringify(body),
    headers: { "Content-Type": "application/json", "X-Cprec-As": encodeURIComponent(name) },
  });
  return response.json();
}

/**
 * Follows server-sent events until the signal aborts; connects again when they break off.
 * EventSource cannot send the token as a header, so the stream is read here.
 */
export async function follow(path, onParts, onLink, signal) {
  for (let pause = 1; !signal.aborted; pause = Math.min(2 * pause, 15)) {
    try {
      const response = await ask(path, { signal });
      onLink("live");
      pause = 1;
      await readEvents(response.body, onParts);
    } catch (error) {
      if (signal.aborted || error.status === 401) return;
      if (error instanceof Refusal) onParts([{ name: "problem", content: error.message }]);
    }
    if (signal.aborted) return;
    onLink("away");
    await new Promise((resolve) => setTimeout(resolve, 1000 * pause));
  }
}

async function readEvents(body, onParts) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    const end = text.lastIndexOf("\n\n");
    if (end < 0) continue;
    const parts = text.slice(0, end).split("\n\n")
      .filter((event) => event.startsWith("data: "))
      .map((event) => JSON.parse(event.slice(6)));
    text = text.slice(end + 2);
    if (parts.length) onParts(parts);
  }
}
