package market.bakery;

import java.time.Duration;
import java.time.LocalTime;
import java.util.ArrayDeque;
import java.util.Comparator;
import java.util.Deque;
import java.util.EnumMap;
import java.util.List;
import java.util.Map;
import java.util.Optional;

/** An oven with few places: loaves wait in turn, and each takes as long as its dough wants. */
public final class Bakery {

    public enum Dough {
        WHEAT(Duration.ofMinutes(35)),
        RYE(Duration.ofMinutes(55)),
        SPELT(Duration.ofMinutes(45));

        private final Duration baking;

        Dough(Duration baking) {
            this.baking = baking;
        }
    }

    public record Loaf(int number, Dough dough, LocalTime ready) {}

    private final int places;
    private final Deque<Dough> waiting = new ArrayDeque<>();
    private final List<Loaf> inside = new java.util.ArrayList<>();
    private final Map<Dough, Integer> sold = new EnumMap<>(Dough.class);
    private int lastNumber;

    public Bakery(int places) {
        if (places < 1) {
            throw new IllegalArgumentException("an oven has a place at least, not " + places);
        }
        this.places = places;
    }

    public void order(Dough dough) {
        waiting.addLast(dough);
    }

    /** Takes out what is ready, and fills the places that are free. */
    public List<Loaf> turn(LocalTime now) {
        List<Loaf> ready = inside.stream()
            .filter(loaf -> !loaf.ready().isAfter(now))
            .sorted(Comparator.comparing(Loaf::ready))
            .toList();
        inside.removeAll(ready);
        ready.forEach(loaf -> sold.merge(loaf.dough(), 1, Integer::sum));
        while (inside.size() < places && !waiting.isEmpty()) {
            Dough next = waiting.removeFirst();
            inside.add(new Loaf(++lastNumber, next, now.plus(next.baking)));
        }
        return ready;
    }

    public Optional<Dough> favourite() {
        return sold.entrySet().stream().max(Map.Entry.comparingByValue()).map(Map.Entry::getKey);
    }
}
