// A mosaic is laid of coloured stones: for every field the nearest colour of which stones are left is taken.

#include <algorithm>
#include <array>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace mosaic {

struct Colour {
    std::uint8_t red, green, blue;

    friend bool operator==(const Colour&, const Colour&) = default;
};

int distance(const Colour& a, const Colour& b)
{
    const std::array<int, 3> apart{a.red - b.red, a.green - b.green, a.blue - b.blue};
    int sum = 0;
    for (int difference : apart)
        sum += difference * difference;
    return sum;
}

class Box {
public:
    void add(Colour colour, unsigned stones)
    {
        auto found = std::find_if(stones_.begin(), stones_.end(), [&](const auto& entry) { return entry.first == colour; });
        if (found == stones_.end())
            stones_.emplace_back(colour, stones);
        else
            found->second += stones;
    }

    std::optional<Colour> take_nearest(const Colour& wanted)
    {
        auto best = stones_.end();
        int least = std::numeric_limits<int>::max();
        for (auto it = stones_.begin(); it != stones_.end(); ++it) {
            if (it->second == 0)
                continue;
            if (const int far = distance(it->first, wanted); far < least) {
                least = far;
                best = it;
            }
        }
        if (best == stones_.end())
            return std::nullopt;
        --best->second;
        return best->first;
    }

private:
    std::vector<std::pair<Colour, unsigned>> stones_;
};

template <typename Picture>
std::vector<Colour> lay(const Picture& picture, Box& box)
{
    std::vector<Colour> laid;
    laid.reserve(picture.size());
    for (const Colour& field : picture) {
        auto stone = box.take_nearest(field);
        if (!stone)
            throw std::runtime_error("no stones are left after " + std::to_string(laid.size()) + " fields");
        laid.push_back(*stone);
    }
    return laid;
}

} // namespace mosaic
