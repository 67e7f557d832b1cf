package island.ferry;

import java.time.Duration;
import java.time.LocalTime;
import java.util.ArrayList;
import java.util.Collections;
import java.util.List;
import java.util.Optional;

/** Departures of a ferry that sails as soon as it is full, but never later than its timetable says. */
public final class FerrySchedule {

    private final int places;
    private final List<LocalTime> departures;
    private final List<Passenger> waiting = new ArrayList<>();

    public FerrySchedule(int places, List<LocalTime> departures) {
        if (places <= 0) {
            throw new IllegalArgumentException("a ferry needs places, not " + places);
        }
        this.places = places;
        this.departures = new ArrayList<>(departures);
        Collections.sort(this.departures);
    }

    public record Passenger(String name, boolean withBicycle) {
        int space() {
            return withBicycle ? 2 : 1;
        }
    }

    /** Puts a passenger on the quay and says when the ferry that takes them will sail at the latest. */
    public Optional<LocalTime> arrive(Passenger passenger, LocalTime now) {
        waiting.add(passenger);
        int boat = (usedSpace() - 1) / places;
        return departures.stream().filter(time -> !time.isBefore(now)).skip(boat).findFirst();
    }

    /** Takes aboard whoever fits, in the order of their coming. */
    public List<Passenger> board() {
        List<Passenger> aboard = new ArrayList<>();
        int left = places;
        while (!waiting.isEmpty() && waiting.get(0).space() <= left) {
            Passenger next = waiting.remove(0);
            left -= next.space();
            aboard.add(next);
        }
        return aboard;
    }

    public boolean isFull() {
        return usedSpace() >= places;
    }

    public Duration longestGap() {
        Duration longest = Duration.ZERO;
        for (int index = 1; index < departures.size(); index++) {
            Duration gap = Duration.between(departures.get(index - 1), departures.get(index));
            if (gap.compareTo(longest) > 0) {
                longest = gap;
            }
        }
        return longest;
    }

    private int usedSpace() {
        return waiting.stream().mapToInt(Passenger::space).sum();
    }
}
