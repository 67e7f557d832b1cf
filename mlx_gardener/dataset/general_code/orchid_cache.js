// A cache that keeps what was used lately, and asks for what it does not have only once at a time.

"use strict";

class OrchidCache {
  #entries = new Map();
  #waiting = new Map();

  /**
   * @param {(key: string) => Promise<unknown>} load asked for what is not there
   * @param {{size?: number, maxAgeMs?: number, now?: () => number}} [options]
   */
  constructor(load, { size = 100, maxAgeMs = Infinity, now = Date.now } = {}) {
    if (typeof load !== "function") {
      throw new TypeError("load must be a function");
    }
    this.load = load;
    this.size = size;
    this.maxAgeMs = maxAgeMs;
    this.now = now;
    this.hits = 0;
    this.misses = 0;
  }

  async get(key) {
    const known = this.#entries.get(key);
    if (known && this.now() - known.at <= this.maxAgeMs) {
      this.hits += 1;
      this.#entries.delete(key);
      this.#entries.set(key, known);
      return known.value;
    }
    this.misses += 1;
    if (!this.#waiting.has(key)) {
      const asked = this.load(key)
        .then((value) => {
          this.#keep(key, value);
          return value;
        })
        .finally(() => this.#waiting.delete(key));
      this.#waiting.set(key, asked);
    }
    return this.#waiting.get(key);
  }

  forget(predicate) {
    for (const [key, { value }] of this.#entries) {
      if (predicate(key, value)) {
        this.#entries.delete(key);
      }
    }
  }

  #keep(key, value) {
    this.#entries.set(key, { value, at: this.now() });
    while (this.#entries.size > this.size) {
      const [oldest] = this.#entries.keys();
      this.#entries.delete(oldest);
    }
  }
}

module.exports = { OrchidCache };
