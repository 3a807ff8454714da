-- Each request carries the next token of a file, in which there is one a line; after the last comes the first again.
-- Arguments: the file, and how many of its tokens to pass over at the beginning.
local requests, at = {}, 0

function init(arguments)
  for token in io.lines(arguments[1]) do
    wrk.headers['X-Access-Token'] = token
    requests[#requests + 1] = wrk.format()
  end
  at = tonumber(arguments[2])
end

function request()
  at = at % #requests + 1
  return requests[at]
end
