// Package lighthouse keeps the lamps of a coast lit: it asks each for its state and says which need a keeper.
package lighthouse

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"sync"
	"time"
)

// ErrDark is what a lamp answers that does not burn.
var ErrDark = errors.New("the lamp is dark")

// Lamp can be asked whether it burns.
type Lamp interface {
	Name() string
	Check(ctx context.Context) error
}

// Report says how a lamp was found.
type Report struct {
	Name string
	Took time.Duration
	Err  error
}

// NeedsKeeper says whether somebody has to go there.
func (r Report) NeedsKeeper() bool {
	return errors.Is(r.Err, ErrDark) || errors.Is(r.Err, context.DeadlineExceeded)
}

// Coast is a row of lamps that are asked together.
type Coast struct {
	mu    sync.Mutex
	lamps map[string]Lamp
}

// Add puts a lamp on the coast; two of one name are a mistake.
func (c *Coast) Add(lamp Lamp) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.lamps == nil {
		c.lamps = make(map[string]Lamp)
	}
	if _, known := c.lamps[lamp.Name()]; known {
		return fmt.Errorf("there is a lamp %q already", lamp.Name())
	}
	c.lamps[lamp.Name()] = lamp
	return nil
}

// Round asks all lamps at once, each for at most the given time.
func (c *Coast) Round(ctx context.Context, limit time.Duration) []Report {
	c.mu.Lock()
	lamps := make([]Lamp, 0, len(c.lamps))
	for _, lamp := range c.lamps {
		lamps = append(lamps, lamp)
	}
	c.mu.Unlock()

	reports := make([]Report, len(lamps))
	var wait sync.WaitGroup
	for i, lamp := range lamps {
		wait.Add(1)
		go func(i int, lamp Lamp) {
			defer wait.Done()
			inner, cancel := context.WithTimeout(ctx, limit)
			defer cancel()
			began := time.Now()
			reports[i] = Report{Name: lamp.Name(), Err: lamp.Check(inner), Took: time.Since(began)}
		}(i, lamp)
	}
	wait.Wait()
	sort.Slice(reports, func(a, b int) bool { return reports[a].Name < reports[b].Name })
	return reports
}
