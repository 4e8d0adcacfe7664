#!/bin/sh
#
# The queue's turn has come: waits for the agent as the native prompt would be waited for, so that no limit of the queue
# runs meanwhile. While the agent itself only waits for a device, the queue goes on, and gives up on the device when it
# always would.

# A file that `.` does not find would end the shell, which is the first program here.
[ -e /lib/latchkey-lib.sh ] || return 0
. /lib/latchkey-lib.sh || return 0
latchkey_wait --device-timeout 0
