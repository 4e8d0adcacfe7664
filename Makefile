# latchkey: build, test, install. `make help` lists what there is to make.

PREFIX  ?= /usr
DESTDIR ?=
TARGET  := x86_64-unknown-linux-gnu
BUILT   := $(or $(CARGO_TARGET_DIR),target)/$(TARGET)
SHELL   := /bin/bash -eu -o pipefail

.PHONY: all help deps build-deps native dist measure test lint unit test-crash test-policy test-matrix test-stories boot bench demo install uninstall clean
.DEFAULT_GOAL := all
.NOTPARALLEL:

all: dist ## build everything that is installed, into dist/

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "make install takes DESTDIR= (default empty) and PREFIX= (default /usr)"

deps: ## install the Debian packages that building and testing need, if any is missing
	@native/deps

build-deps:
	@native/deps --build

# Cargo copies the archives into the bindings once and does not notice newer ones, so it is told.
native: build-deps ## build the static libcryptsetup, libdevmapper and libgcrypt into native/out/
	@native/build
	@if ! cmp -s native/out/stamp $(BUILT)/native-stamp; then \
		for profile in dev agent; do \
			cargo clean --quiet --package libcryptsetup-rs-sys --profile $$profile; \
		done; \
		install -D -m 644 native/out/stamp $(BUILT)/native-stamp; \
	fi

# The agent aborts where it panics, and no thread of it ends by pthread_exit(3): nobody reads its unwind tables, a tenth of
# what the image grows by, and the linker keeps them.
dist: native ## build the stripped binaries dist/latchkey and dist/latchkeyd, check and measure them
	cargo build --locked --profile agent --package latchkey --bin latchkey
	cargo build --locked --profile keyserver --package latchkeyd --bin latchkeyd
	install -D -m 755 $(BUILT)/agent/latchkey dist/latchkey
	objcopy --remove-section .eh_frame --remove-section .eh_frame_hdr dist/latchkey
	install -D -m 755 $(BUILT)/keyserver/latchkeyd dist/latchkeyd
	@native/measure dist/latchkey initramfs-tools-hook

# --- tests ------------------------------------------------------------------------------------------------------------

test: deps native lint unit boot ## everything: format, lints, unit, property, conformance, loopback and boot tests

lint: native ## format, lints, shell scripts
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	shellcheck native/build native/deps native/measure .ci/run
	shellcheck -e SC1091 dracut-module/90latchkey/module-setup.sh
	shellcheck -s dash -e SC1091 -e SC2154 image/* systemd/system-generators/* dracut-module/90latchkey/latchkey-*.sh dracut-module/tests/*.sh
	cd initramfs-tools-hook && shellcheck -s dash -e SC1091 -e SC2154 \
		hooks/* etc-hooks/* conf-hooks.d/* scripts/*/latchkey scripts/latchkey-* tests/*.sh

unit: native ## all tests that need no machine
	cargo test --locked --workspace
	for script in initramfs-tools-hook/tests/*.sh dracut-module/tests/*.sh; do $$script; done

test-crash: native ## kill -9 of both programs at 200 points each (make unit does 24); SEED=N chooses other points
	LATCHKEY_KILLS=200 LATCHKEY_SEED=$(or $(SEED),1) \
		cargo test --locked --package latchkey --test crash -- --nocapture

test-policy: native ## what each preset gives to 100 copies of each kind and to 1,000 honest boots, as a table (half an hour)
	LATCHKEY_COPIES=100 LATCHKEY_HONEST=1000 cargo test --locked --package latchkey --test presets -- --nocapture

# Results are kept with their commit: `make test-matrix FLAVOURS="debian13 debian12-dracut"` plays these two anew.
FLAVOURS ?=

test-matrix: deps native dist ## play the rows of docs/compatibility.md on FLAVOURS= (default: all, an hour each)
	cargo test --locked --package latchkey-tests --test boot -- --ignored --matrix $(addprefix --flavour ,$(FLAVOURS))

test-stories: deps native dist ## play the boot scenarios that are too long for make test (half an hour)
	cargo test --locked --package latchkey-tests --test boot -- --ignored --longer

boot: native dist ## the boot tests alone
	cargo test --locked --package latchkey-tests --test boot -- --ignored

FIGURES := $(or $(CARGO_TARGET_DIR),target)/figures

bench: deps dist ## figures beside those of peers, into docs/benchmarks.md (an hour; keep the machine quiet)
	@native/deps --bench
	cargo build --locked --package latchkey-tests --bin bench
	cargo build --locked --profile keyserver --package latchkey-load
	for part in boot image memory machines; do \
		$(BUILT)/debug/bench $$part $(FIGURES); \
	done
	rm -rf $(FIGURES)/load && mkdir -p $(FIGURES)/load
	$(BUILT)/keyserver/latchkey-load --latchkeyd dist/latchkeyd --folder $(FIGURES)/load --json $(FIGURES)/server.json
	$(BUILT)/debug/bench report $(FIGURES)

demo: deps dist ## boot a machine with an encrypted root that opens by itself, and again with the key server away
	cargo run --locked --package latchkey-tests --bin demo

# --- installation -----------------------------------------------------------------------------------------------------
# Whatever lies in the source folders is installed: adding a script, unit or page needs no change here.

TOOLS   := $(DESTDIR)/usr/share/initramfs-tools
HOOKS   := $(DESTDIR)/etc/initramfs-tools/hooks
DRACUT  := $(DESTDIR)/usr/lib/dracut/modules.d
IMAGE   := $(DESTDIR)$(PREFIX)/lib/latchkey
UNITS   := $(DESTDIR)$(PREFIX)/lib/systemd/system
MAKERS  := $(DESTDIR)$(PREFIX)/lib/systemd/system-generators
USERS   := $(DESTDIR)$(PREFIX)/lib/sysusers.d
MAN     := $(DESTDIR)$(PREFIX)/share/man
DOC     := $(DESTDIR)$(PREFIX)/share/doc/latchkey

hooks         := $(patsubst initramfs-tools-hook/%,%,$(shell find \
	initramfs-tools-hook/hooks initramfs-tools-hook/scripts initramfs-tools-hook/conf-hooks.d -type f))
admin_hooks   := $(notdir $(wildcard initramfs-tools-hook/etc-hooks/*))
image_parts   := $(notdir $(wildcard image/*))
modules       := $(patsubst dracut-module/%,%,$(shell find dracut-module/90latchkey -type f))
units         := $(shell find systemd \( -type f -o -type l \) ! -name '*.md' ! -path '*/sysusers.d/*' ! -path '*/system-generators/*' -printf '%P\n' 2>/dev/null)
generators    := $(notdir $(wildcard systemd/system-generators/*))
users         := $(notdir $(wildcard systemd/sysusers.d/*.conf))
pages         := $(notdir $(wildcard docs/man/*.[1-9]))
papers        := $(wildcard LICENSE LICENSE-* README.md CHANGELOG.md)
installed     := \
	$(DESTDIR)$(PREFIX)/bin/latchkey $(DESTDIR)$(PREFIX)/sbin/latchkeyd \
	$(addprefix $(TOOLS)/,$(hooks)) \
	$(addprefix $(HOOKS)/,$(admin_hooks)) $(addprefix $(DRACUT)/,$(modules)) \
	$(addprefix $(IMAGE)/,$(image_parts)) \
	$(addprefix $(UNITS)/,$(units)) $(addprefix $(MAKERS)/,$(generators)) $(addprefix $(USERS)/,$(users)) \
	$(foreach page,$(pages),$(MAN)/man$(subst .,,$(suffix $(page)))/$(page)) \
	$(addprefix $(DOC)/,$(papers))

# What earlier versions put there.
retired       := $(UNITS)/latchkey-report.service $(UNITS)/multi-user.target.wants/latchkey-report.service \
	$(TOOLS)/scripts/latchkey-holds-prompt

# One script or unit to its place, told where the programs are. Links stay links, scripts stay executable.
place = install -d "$$(dirname $(2))"; rm -f $(2); \
	if [ -L $(1) ]; then cp -P $(1) $(2); else \
		sed 's|/usr/\(s\?bin/latchkey\|lib/latchkey\|lib/systemd/system/latchkey\)|$(PREFIX)/\1|g' $(1) >$(2); \
		if [ -x $(1) ]; then chmod 755 $(2); else chmod 644 $(2); fi; \
	fi

# Installs what dist/ holds, so that root need not build; only where there is nothing yet, it is built.
install: $(if $(and $(wildcard dist/latchkey),$(wildcard dist/latchkeyd)),,dist) ## put everything in place
	rm -f $(retired)
	install -D -m 755 dist/latchkey $(DESTDIR)$(PREFIX)/bin/latchkey
	install -D -m 755 dist/latchkeyd $(DESTDIR)$(PREFIX)/sbin/latchkeyd
	for file in $(hooks); do $(call place,initramfs-tools-hook/$$file,$(TOOLS)/$$file); done
	for file in $(admin_hooks); do $(call place,initramfs-tools-hook/etc-hooks/$$file,$(HOOKS)/$$file); done
	for file in $(modules); do $(call place,dracut-module/$$file,$(DRACUT)/$$file); done
	for file in $(image_parts); do $(call place,image/$$file,$(IMAGE)/$$file); done
	for file in $(units); do $(call place,systemd/$$file,$(UNITS)/$$file); done
	for file in $(generators); do $(call place,systemd/system-generators/$$file,$(MAKERS)/$$file); done
	for file in $(users); do install -D -m 644 systemd/sysusers.d/$$file $(USERS)/$$file; done
	for page in $(pages); do install -D -m 644 docs/man/$$page $(MAN)/man$${page##*.}/$$page; done
	for file in $(papers); do install -D -m 644 $$file $(DOC)/$$file; done
	$(reload)

uninstall: ## remove what install put in place; keys, settings and stores stay
	rm -f $(installed) $(retired)
	-rmdir --ignore-fail-on-non-empty $(DOC) $(IMAGE) $(DRACUT)/90latchkey $(UNITS)/systemd-cryptsetup@.service.d
	$(reload)

# Only for the running system: a package or an image being built has no manager to tell.
reload = $(if $(DESTDIR),,@if [ -d /run/systemd/system ]; then systemd-sysusers; systemctl daemon-reload; fi)

clean: ## remove everything that was built; downloaded sources stay in .cache/
	cargo clean
	rm -rf dist native/out .cache/native/work .cache/native/stage
