# Files of Lua's source, the ones that take longest first: the last N of them, by gcc -O2. (Few large ones cannot be divided
# among two: of three equal ones, one CPU is left with two.)
files = lparser lcode lstrlib lapi lgc lauxlib ltable ldebug lobject lmathlib ltablib loslib
first = $(shell expr $(words $(files)) - $(N) + 1)

all: $(wordlist $(first),$(words $(files)),$(files:%=/tmp/out/%.o))

/tmp/out/%.o: %.c
	gcc -O2 -c $< -o $@
