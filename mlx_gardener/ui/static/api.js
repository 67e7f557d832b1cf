// Questions to the server: JSON both ways, the token in a header of its own, and streams of events.

const KEY = "mlx-gardener-token";

/** Take the token out of the address, where it stands behind # and so was sent nowhere. */
export function takeToken() {
  const found = new URLSearchParams(location.hash.slice(1)).get("token");
  if (found === null) return;
  keepToken(found);
  history.replaceState(null, "", "/#projects");
}

export function keepToken(token) {
  sessionStorage.setItem(KEY, token.trim());
}

const headers = () => ({ authorization: `Bearer ${sessionStorage.getItem(KEY) || ""}` });

/** What the server said could not be done. */
export class Refused extends Error {
  constructor(error, status) {
    super(error.message);
    this.next_step = error.next_step || "";
    this.status = status;
    this.details = error;
  }
}

async function asked(path, options) {
  let answer;
  try {
    answer = await fetch(`/ui/api/${path}`, { ...options, headers: { ...headers(), ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused({ message: "The server does not answer.", next_step: "Start `mlx-gardener ui` again." }, 0);
  }
  if (answer.ok) return answer;
  let error = { message: `The server answered ${answer.status}.` };
  try {
    error = (await answer.json()).error;
  } catch { /* what stands there is no JSON: the status says it */ }
  if (answer.status === 401) dispatchEvent(new Event("token-needed"));
  throw new Refused(error, answer.status);
}

export async function get(path, signal) {
  return (await asked(path, { signal })).json();
}

export async function post(path, body, signal) {
  const options = { method: "POST", body: JSON.stringify(body), headers: { "content-type": "application/json" }, signal };
  return (await asked(path, options)).json();
}

/** Hand each event of a stream to `on[name]`; asks again when the stream breaks off, until the signal ends it. */
export async function follow(path, on, signal) {
  while (!signal.aborted) {
    try {
      const reader = (await asked(path, { signal })).body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        const found = (text + part.value).split("\n\n");
        text = found.pop();
        for (const block of found) {
          const lines = block.split("\n");
          const name = lines.find((line) => line.startsWith("event: "));
          const data = lines.find((line) => line.startsWith("data: "));
          if (name && data && on[name.slice(7)]) on[name.slice(7)](JSON.parse(data.slice(6)));
        }
      }
    } catch (error) {
      if (signal.aborted) return;
      if (error.status === 401 || error.status === 404) throw error;
      on.broken?.(error);
    }
    await new Promise((done) => setTimeout(done, 1000));
  }
}

export const of = (project) => `projects/${encodeURIComponent(project)}`;
