/* A carillon plays melodies from a drum of pins: each row of the drum is a moment, each pin a bell. */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { BELLS = 24, MOST_ROWS = 4096 };

struct drum {
    uint32_t *rows; /* a bit for each bell */
    size_t length;
    size_t capacity;
};

struct strike {
    size_t row;
    unsigned bell;
};

void drum_init(struct drum *drum)
{
    memset(drum, 0, sizeof *drum);
}

void drum_free(struct drum *drum)
{
    free(drum->rows);
    drum_init(drum);
}

static bool drum_reserve(struct drum *drum, size_t rows)
{
    if (rows <= drum->capacity)
        return true;
    if (rows > MOST_ROWS)
        return false;
    size_t capacity = drum->capacity ? drum->capacity : 16;
    while (capacity < rows)
        capacity *= 2;
    uint32_t *grown = realloc(drum->rows, capacity * sizeof *grown);
    if (grown == NULL)
        return false;
    memset(grown + drum->capacity, 0, (capacity - drum->capacity) * sizeof *grown);
    drum->rows = grown;
    drum->capacity = capacity;
    return true;
}

bool drum_set_pin(struct drum *drum, size_t row, unsigned bell)
{
    if (bell >= BELLS || !drum_reserve(drum, row + 1))
        return false;
    drum->rows[row] |= UINT32_C(1) << bell;
    if (row >= drum->length)
        drum->length = row + 1;
    return true;
}

/* Writes at most `most` strikes in the order in which they sound; returns how many there are. */
size_t drum_play(const struct drum *drum, struct strike *out, size_t most)
{
    size_t count = 0;
    for (size_t row = 0; row < drum->length; row++) {
        for (unsigned bell = 0; bell < BELLS; bell++) {
            if (!(drum->rows[row] >> bell & 1))
                continue;
            if (count < most)
                out[count] = (struct strike){ row, bell };
            count++;
        }
    }
    return count;
}
