// Reads tide tables as the harbour office publishes them and answers when a boat of a given draught can leave.

const MINUTES_PER_DAY = 24 * 60;

export class TideTable {
  constructor(entries, { chartDepth = 0 } = {}) {
    this.entries = entries
      .map(({ time, height }) => ({ minute: toMinute(time), height }))
      .sort((left, right) => left.minute - right.minute);
    this.chartDepth = chartDepth;
  }

  static parse(text, options) {
    const entries = [];
    for (const [index, line] of text.split(/\r?\n/).entries()) {
      const trimmed = line.trim();
      if (trimmed === "" || trimmed.startsWith(";")) {
        continue;
      }
      const match = /^(\d{2}:\d{2})\s+(-?\d+(?:\.\d+)?)\s*m$/.exec(trimmed);
      if (!match) {
        throw new SyntaxError(`line ${index + 1} is no tide: ${trimmed}`);
      }
      entries.push({ time: match[1], height: Number(match[2]) });
    }
    return new TideTable(entries, options);
  }

  heightAt(time) {
    const minute = toMinute(time);
    const after = this.entries.findIndex((entry) => entry.minute >= minute);
    if (after <= 0) {
      return after === 0 ? this.entries[0].height : this.entries.at(-1).height;
    }
    const [low, high] = [this.entries[after - 1], this.entries[after]];
    const share = (minute - low.minute) / (high.minute - low.minute);
    // Between two extremes the sea follows half a cosine.
    const curve = (1 - Math.cos(Math.PI * share)) / 2;
    return low.height + (high.height - low.height) * curve;
  }

  windows(draught, step = 10) {
    const found = [];
    let open = null;
    for (let minute = 0; minute < MINUTES_PER_DAY; minute += step) {
      const deepEnough = this.heightAt(toTime(minute)) + this.chartDepth >= draught;
      if (deepEnough && open === null) {
        open = minute;
      } else if (!deepEnough && open !== null) {
        found.push({ from: toTime(open), until: toTime(minute) });
        open = null;
      }
    }
    if (open !== null) {
      found.push({ from: toTime(open), until: toTime(MINUTES_PER_DAY - 1) });
    }
    return found;
  }
}

function toMinute(time) {
  const [hours, minutes] = time.split(":").map(Number);
  return hours * 60 + minutes;
}

function toTime(minute) {
  const pad = (value) => String(value).padStart(2, "0");
  return `${pad(Math.floor(minute / 60))}:${pad(minute % 60)}`;
}
