#!/bin/sh
#
# Asked whether the queue is done, before 00resume, which brings a hibernated system back: no credential may be in memory
# then. It answers no until the space is there or given up, because some versions of dracut never ask again after a yes.

[ -e /lib/latchkey-lib.sh ] || return 0
. /lib/latchkey-lib.sh

if [ ! -e /.resume ] || [ ! -e /run/latchkey/agent.pid ]; then
	return 0
fi
if [ -e "$hookdir/initqueue/finished/00resume.sh" ]; then
	"$latchkey_binary" cleanup --before-resume </dev/null
	return 0
fi
[ ! -e /dev/resume ] || return 0
for latchkey_file in "$hookdir"/initqueue/finished/devexists-*resume*.sh; do
	[ ! -e "$latchkey_file" ] || return 1
done
return 0
