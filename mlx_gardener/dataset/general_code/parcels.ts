// Parcels on their way through sorting centres: where each one is, and when it will come.

export type Status = "accepted" | "sorting" | "travelling" | "delivered" | "lost";

export interface Stop {
  readonly centre: string;
  readonly arrived: Date;
  readonly left?: Date;
}

export interface Parcel {
  id: string;
  grams: number;
  status: Status;
  stops: Stop[];
}

export class UnknownParcelError extends Error {
  constructor(readonly id: string) {
    super(`no parcel has the number ${id}`);
    this.name = "UnknownParcelError";
  }
}

const HOURS_BETWEEN: Record<string, Record<string, number>> = {
  north: { middle: 5, south: 11 },
  middle: { north: 5, south: 6 },
  south: { middle: 6, north: 11 },
};

export class Tracker {
  private readonly parcels = new Map<string, Parcel>();

  accept(id: string, grams: number, centre: string, now = new Date()): Parcel {
    if (this.parcels.has(id)) {
      throw new Error(`parcel ${id} was accepted before`);
    }
    const parcel: Parcel = { id, grams, status: "accepted", stops: [{ centre, arrived: now }] };
    this.parcels.set(id, parcel);
    return parcel;
  }

  move(id: string, to: string, now = new Date()): void {
    const parcel = this.find(id);
    const last = parcel.stops[parcel.stops.length - 1];
    if (last.centre === to) {
      return;
    }
    parcel.stops[parcel.stops.length - 1] = { ...last, left: now };
    parcel.stops.push({ centre: to, arrived: now });
    parcel.status = "travelling";
  }

  expectedAt(id: string, goal: string): Date | undefined {
    const { stops } = this.find(id);
    const here = stops[stops.length - 1];
    const hours = here.centre === goal ? 0 : HOURS_BETWEEN[here.centre]?.[goal];
    return hours === undefined ? undefined : new Date(here.arrived.getTime() + hours * 3_600_000);
  }

  heaviest(count: number): Parcel[] {
    return [...this.parcels.values()].sort((a, b) => b.grams - a.grams).slice(0, count);
  }

  private find(id: string): Parcel {
    const parcel = this.parcels.get(id);
    if (!parcel) {
      throw new UnknownParcelError(id);
    }
    return parcel;
  }
}
