#!/bin/sh
#
# Before anybody gets a shell: ends the agent, takes the network back, wipes the credentials.

if [ -e /lib/latchkey-lib.sh ]; then
	. /lib/latchkey-lib.sh
	latchkey_end
elif [ -e /run/latchkey/agent.pid ]; then
	/usr/bin/latchkey cleanup </dev/null
fi
