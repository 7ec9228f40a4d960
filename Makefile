# What people do with doppel; Meson and Ninja do the work. `make run` and `make test` install what is missing (Debian 12), build and
# fetch Debian's own kernels by themselves.

BUILD = build
PREFIX = /usr/local
GROUP = all
MEMORY = 1G
CPUS = 2
# Where tools/fetch-guests puts them.
GUESTS = $(or $(DOPPEL_GUESTS),guests)

all: build

build:
	@tools/setup build
	@[ -e $(BUILD)/build.ninja ] || meson setup --prefix $(PREFIX) $(BUILD)
	ninja -C $(BUILD)

cloud:
	@[ -e "$(GUESTS)/cloud/initrd.gz" ] || { tools/setup run && tools/fetch-guests cloud; }

# Debian 12's own kernel to a shell; Ctrl-A X leaves, and so does 'poweroff -f'.
run: build cloud
	$(BUILD)/doppel run --kernel "$(GUESTS)/cloud/vmlinuz" --initrd "$(GUESTS)/cloud/initrd.gz" \
		--append "console=ttyS0 quiet" --memory $(MEMORY) --cpus $(CPUS)

# Ends with 'N passed, N failed'. GROUP: unit, fuzz, diff, guest or system; TEST: a part of a test's name; FUZZ_SECONDS: for each fuzz target.
test: build
	@tools/setup run test
	tools/run-tests --build $(BUILD) --group $(GROUP) $(if $(TEST),--test $(TEST)) $(if $(FUZZ_SECONDS),--fuzz-seconds $(FUZZ_SECONDS))

# libFuzzer on one target (a fuzz_NAME.c of tests/fuzz) for TIME seconds. New inputs go to build-fuzz/corpus/TARGET, a finding's to
# build-fuzz/finding-TARGET-*; ARGS are libFuzzer's.
TARGET = virtio
TIME = 60
fuzz:
	@tools/setup build fuzz
	@[ -e build-fuzz/build.ninja ] || CC=clang meson setup -Dfuzz=true -Db_sanitize=address,undefined -Db_lundef=false build-fuzz
	ninja -C build-fuzz tests/fuzz/fuzz_$(TARGET) tests/fuzz/native_child
	@mkdir -p build-fuzz/corpus/$(TARGET)
	build-fuzz/tests/fuzz/fuzz_$(TARGET) -max_total_time=$(TIME) -max_len=1024 -len_control=20 -timeout=20 -rss_limit_mb=2048 \
		-artifact_prefix=build-fuzz/finding-$(TARGET)- $(ARGS) build-fuzz/corpus/$(TARGET) tests/fuzz/corpus/$(TARGET)

# Adds to tests/fuzz/corpus/TARGET what of build-fuzz/corpus/TARGET goes further than what is there, the smallest inputs first.
fuzz-corpus:
	build-fuzz/tests/fuzz/fuzz_$(TARGET) -merge=1 -use_counters=0 -max_len=1024 tests/fuzz/corpus/$(TARGET) build-fuzz/corpus/$(TARGET)

# 100 boots in a row with 1 processor, and 100 with 4: takes a while.
hundred: build cloud
	@tools/setup run test
	DOPPEL=$(BUILD)/doppel DOPPEL_BUILD=$(BUILD) python3 tests/system/hundred_boots

# The same work natively, in doppel, in QEMU and in User-mode Linux: build/bench/table.md and plot.svg; takes 45 minutes, or (quick)
# two. ARGS: see bench/run --help.
bench: build
	@tools/setup run test
	@bench/setup
	bench/run --doppel $(BUILD)/doppel --out $(BUILD)/bench $(ARGS)

bench-quick: build
	@tools/setup run test
	@bench/setup
	bench/run --quick --doppel $(BUILD)/doppel --out $(BUILD)/bench $(ARGS)

install: build
	meson install -C $(BUILD)

format:
	@tools/setup lint
	git ls-files '*.c' '*.h' | xargs clang-format -i

lint: build
	@tools/setup lint
	tools/lint $(BUILD)

clean:
	rm -rf $(BUILD) build-fuzz

.PHONY: all build cloud run test fuzz fuzz-corpus hundred bench bench-quick install format lint clean
