#!/bin/sh
#
# Asked whether the queue is done, before 00resume, the job that brings a hibernated system back: no credential may be in
# memory then. udev puts that job there when it sees such a system; where it does not, the pre-mount hook still tries the
# device that resume= names. It answers no until that device is there or given up, because some versions of dracut never ask
# again after a yes.

[ -e /lib/latchkey-lib.sh ] || return 0
. /lib/latchkey-lib.sh || return 0

[ -e /run/latchkey/agent.pid ] || return 0
if [ -e "$hookdir/initqueue/finished/00resume.sh" ]; then
	"$latchkey_binary" cleanup </dev/null
	return 0
fi
[ -e /.resume ] || return 0
if [ -e /dev/resume ]; then
	"$latchkey_binary" cleanup --before-resume </dev/null
	return 0
fi
for latchkey_file in "$hookdir"/initqueue/finished/devexists-*resume*.sh; do
	[ ! -e "$latchkey_file" ] || return 1
done
return 0
