# Users, roles, permissions, and a store that asks who you are.
e role add reader
e role add reader
e role add ''
e role add writer
e role grant-permission reader read a
e role grant-permission reader read p/ --prefix
e role grant-permission reader read q r
e role grant-permission writer write w
e role grant-permission writer readwrite z --from-key
e role grant-permission nobody read a
e role grant-permission reader fly a
e role get reader
e role get writer
e role get nobody
e role list
e role revoke-permission reader q r
e role revoke-permission reader q r
e role get reader -w json
e user add alice:secret
e user add alice:secret
e user add bob --new-user-password=hidden
feed 'typed\n' user add carol --interactive=false
e user add dave --no-password
e user add '' --no-password
e user grant-role alice reader
e user grant-role alice writer
e user grant-role alice nobody
e user grant-role zed reader
e user get alice
e user get alice --detail
e user get zed
e user list
e user revoke-role alice writer
e user revoke-role alice writer
feed 'other\n' user passwd bob --interactive=false
e auth enable
e user add root:root
e auth enable
e user grant-role root root
e auth enable
e get a
e put a 1
e user list
e --user=root:wrong get a
e --user=zed:x get a
e --user=root:root put a 1
e --user=root:root put p/1 2
e --user=root:root put other 3
e --user=alice:secret get a
e --user=alice:secret get --prefix p/
e --user=alice:secret get other
e --user=alice:secret get --prefix ''
e --user=alice:secret put a 2
e --user=alice --password=secret get a
e --user=alice:secret user list
e --user=alice:secret user get alice
e --user=alice:secret user get bob
# Newer releases of etcd demand root for this.
e --user=root:root compaction 1
unordered e --user=alice:secret member list -w fields
e --user=alice:secret auth disable
e --user=bob:other get a
e --user=root:root user grant-role alice writer
e --user=alice:secret put w 1
e --user=alice:secret get w
e --user=alice:secret put zz 1
e --user=alice:secret del zz
feed 'value("a") = "1"\n\nput w 2\n\nget other\n\n' --user=alice:secret txn
feed 'value("a") = "1"\n\nput w 2\n\n\n' --user=alice:secret txn
e --user=root:root role delete reader
e --user=alice:secret get a
e --user=root:root user delete alice
e --user=alice:secret get a
e --user=root:root role delete root
e --user=root:root user delete root
e --user=root:root auth disable
e auth disable
e get a
for user in root bob carol dave; do e user delete "$user"; done
for role in writer root; do e role delete "$role"; done
e user list
e role list
e role delete writer
e user delete bob
