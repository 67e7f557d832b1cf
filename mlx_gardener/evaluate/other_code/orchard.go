// Package orchard assigns picking crews to rows of trees so that ripe rows are never left over night.
package orchard

import (
	"errors"
	"fmt"
	"sort"
)

// ErrNoCrew is returned when there are ripe rows and nobody to pick them.
var ErrNoCrew = errors.New("orchard: no crew is free")

// Row is one row of trees and how many crates it will fill.
type Row struct {
	Number   int
	Variety  string
	Crates   int
	Ripeness float64
}

// Crew picks so many crates an hour.
type Crew struct {
	Name          string
	CratesPerHour int
	assigned      []Row
}

// Hours tells how long the crew will be busy.
func (c *Crew) Hours() float64 {
	total := 0
	for _, row := range c.assigned {
		total += row.Crates
	}
	return float64(total) / float64(c.CratesPerHour)
}

// Plan gives every ripe row to the crew that would be finished first.
func Plan(rows []Row, crews []*Crew, ripe float64) (map[string][]int, error) {
	wanted := make([]Row, 0, len(rows))
	for _, row := range rows {
		if row.Ripeness >= ripe {
			wanted = append(wanted, row)
		}
	}
	if len(wanted) > 0 && len(crews) == 0 {
		return nil, ErrNoCrew
	}
	sort.SliceStable(wanted, func(i, j int) bool {
		if wanted[i].Ripeness != wanted[j].Ripeness {
			return wanted[i].Ripeness > wanted[j].Ripeness
		}
		return wanted[i].Crates > wanted[j].Crates
	})
	for _, row := range wanted {
		best := crews[0]
		for _, crew := range crews[1:] {
			if crew.Hours()+float64(row.Crates)/float64(crew.CratesPerHour) <
				best.Hours()+float64(row.Crates)/float64(best.CratesPerHour) {
				best = crew
			}
		}
		best.assigned = append(best.assigned, row)
	}
	plan := make(map[string][]int, len(crews))
	for _, crew := range crews {
		for _, row := range crew.assigned {
			plan[crew.Name] = append(plan[crew.Name], row.Number)
		}
	}
	return plan, nil
}

// Summary is a line for the board in the barn.
func Summary(crews []*Crew) string {
	longest := 0.0
	for _, crew := range crews {
		if hours := crew.Hours(); hours > longest {
			longest = hours
		}
	}
	return fmt.Sprintf("%d crews, finished after %.1f hours", len(crews), longest)
}
