# frozen_string_literal: true

# A regatta over several races: the fewest points win, and the worst race of each boat does not count.
module Regatta
  Result = Struct.new(:boat, :place, :disqualified, keyword_init: true) do
    def points(starters)
      disqualified ? starters + 1 : place
    end
  end

  class Series
    attr_reader :races

    def initialize(discards: 1)
      @discards = discards
      @races = []
    end

    def add_race(results)
      doubled = results.group_by(&:boat).select { |_, found| found.size > 1 }.keys
      raise ArgumentError, "twice in one race: #{doubled.join(', ')}" unless doubled.empty?

      @races << results
      self
    end

    def standings
      boats.map { |boat| [boat, net_points(boat)] }.sort_by { |boat, points| [points, boat] }
    end

    def leader
      standings.first&.first
    end

    private

    def boats
      @races.flatten.map(&:boat).uniq
    end

    def net_points(boat)
      scores = @races.map do |results|
        own = results.find { |result| result.boat == boat }
        own ? own.points(results.size) : results.size + 1
      end
      kept = [scores.size - @discards, 1].max
      scores.sort.first(kept).sum
    end
  end
end
