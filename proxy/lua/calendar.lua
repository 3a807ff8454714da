-- Sets day and month of `now` (ms, UTC): days since 1970 and months since March of the year 0, as proxy.limits has
-- them. Years start in March here, so that the leap day is the last of its year.
local day = math.floor(now / 86400000)
local count = day + 719468
local era = math.floor(count / 146097)
local rest = count - era * 146097
local year = math.floor((rest - math.floor(rest / 1460) + math.floor(rest / 36524) - math.floor(rest / 146096)) / 365)
rest = rest - (365 * year + math.floor(year / 4) - math.floor(year / 100))
local month = (era * 400 + year) * 12 + math.floor((5 * rest + 2) / 153)
