#!/bin/sh
#
# Before anybody gets a shell: ends the agent, takes the network back, wipes the credentials, closes what opened by itself.

[ -e /lib/latchkey-lib.sh ] || return 0
. /lib/latchkey-lib.sh || return 0
latchkey_withdraw
