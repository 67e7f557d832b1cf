/* Reads weaving drafts: a line of letters is a row of the pattern, and every letter lifts one shaft of the loom. */

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_SHAFTS 16

struct draft {
    unsigned short *rows; /* one bit for every shaft that is lifted */
    size_t length;
    size_t capacity;
};

static int draft_add(struct draft *draft, unsigned short row)
{
    if (draft->length == draft->capacity) {
        size_t wanted = draft->capacity ? 2 * draft->capacity : 8;
        unsigned short *grown = realloc(draft->rows, wanted * sizeof *grown);
        if (grown == NULL)
            return -1;
        draft->rows = grown;
        draft->capacity = wanted;
    }
    draft->rows[draft->length++] = row;
    return 0;
}

/* Returns the number of rows read, or minus the number of the first bad line. */
long draft_read(struct draft *draft, FILE *stream)
{
    char line[128];
    long number = 0;

    while (fgets(line, sizeof line, stream) != NULL) {
        unsigned short row = 0;
        number++;
        for (char *at = line; *at != '\0' && *at != '\n'; at++) {
            int shaft;
            if (isspace((unsigned char)*at))
                continue;
            shaft = tolower((unsigned char)*at) - 'a';
            if (shaft < 0 || shaft >= MAX_SHAFTS)
                return -number;
            row |= (unsigned short)(1u << shaft);
        }
        if (draft_add(draft, row) != 0)
            return -number;
    }
    return (long)draft->length;
}

/* The longest float: rows in which a shaft stays where it is. */
size_t longest_float(const struct draft *draft, int shaft)
{
    size_t longest = 0, run = 0;
    int last = -1;

    for (size_t at = 0; at < draft->length; at++) {
        int lifted = (draft->rows[at] >> shaft) & 1;
        run = lifted == last ? run + 1 : 1;
        last = lifted;
        if (run > longest)
            longest = run;
    }
    return longest;
}

void draft_free(struct draft *draft)
{
    free(draft->rows);
    memset(draft, 0, sizeof *draft);
}
