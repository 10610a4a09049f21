# Leases: granted, kept alive, looked at, revoked, expired.
e lease list
e lease grant 100
e lease list
e lease grant 0
e lease grant -- -5
e lease grant 99999999999
e lease grant nonsense
e lease grant
lease=$(word 2 lease grant 300)
e put under 1 --lease="$lease"
e put under/2 1 --lease="$lease"
e get under -w fields
e lease timetolive "$lease" --keys | sed "s,under.2 under\],under under/2],"
e lease timetolive "$lease"
e lease timetolive "$lease" -w fields
e lease timetolive "$lease" -w json
e lease timetolive 1234
e lease timetolive
e lease keep-alive --once "$lease"
e lease keep-alive --once "$lease" -w json
e lease keep-alive --once 1234
background alive lease keep-alive "$lease"
lines alive 1
end
e put under 2 --ignore-lease
e get under -w json
e put under 3
e lease revoke "$lease"
e get --prefix under
e lease revoke "$lease"
e lease revoke
e lease revoke zz
short=$(word 2 lease grant 1)
e put brief 1 --lease="$short"
await '! ctl get brief | grep -q brief'
e get brief
e lease timetolive "$short"
e lease keep-alive --once "$short"
