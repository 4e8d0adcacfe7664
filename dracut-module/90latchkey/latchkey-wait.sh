#!/bin/sh
#
# The queue's turn has come: waits for the agent as the native prompt would be waited for, so that no limit of the queue
# runs meanwhile. While the agent itself only waits for a device, the queue goes on, and gives up on the device when it
# always would.

# A file that `.` does not find would end the shell, which is the first program here.
[ -e /lib/latchkey-lib.sh ] || return 0
. /lib/latchkey-lib.sh || return 0
latchkey_wait --device-timeout 0

# Some versions of dracut ask whether the queue is done until the answer is yes for the first time.
latchkey_hook="$hookdir/initqueue/finished/00-latchkey-resume.sh"
[ -e "$latchkey_hook" ] || cp /lib/latchkey-resume.sh "$latchkey_hook"
unset latchkey_hook
