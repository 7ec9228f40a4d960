-- Calls, tables, strings and closures: N rounds.
local function fib(n) if n < 2 then return n end return fib(n - 1) + fib(n - 2) end

local function sieve(n)
  local composite, count = {}, 0
  for i = 2, n do
    if not composite[i] then
      count = count + 1
      for j = i * i, n, i do composite[j] = true end
    end
  end
  return count
end

local function words(n)
  local seen = {}
  for i = 1, n do
    local w = string.format("%x", i * 2654435761 % 4096)
    seen[w] = (seen[w] or 0) + 1
  end
  return table.concat({next(seen)}, " ")
end

for _ = 1, tonumber(arg[1]) do
  assert(fib(17) == 1597 and sieve(10000) == 1229)
  words(5000)
end
