#!/bin/sh
#
# Asked whether the queue is done, before 00resume, which brings a hibernated system back: no credential may be in memory
# then. Always answers yes.
#
# That job is put there when udev sees a hibernated system. Where it does not, the pre-mount hook still tries the device that
# resume= names.

. /lib/latchkey-lib.sh
if [ -e /run/latchkey/agent.pid ]; then
	if [ -e "$hookdir/initqueue/finished/00resume.sh" ]; then
		"$latchkey_binary" cleanup </dev/null
	elif [ -e /.resume ]; then
		"$latchkey_binary" cleanup --before-resume </dev/null
	fi
fi
return 0
