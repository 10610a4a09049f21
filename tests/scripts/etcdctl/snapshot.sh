# A snapshot is saved, looked at, restored; keys are mirrored.
for n in 1 2 3; do e put "s/$n" "$n"; done
at ALL snapshot save all.db | sed 's/\[127.*/[…]/'
e snapshot save
e snapshot save one.db
e snapshot status one.db
e snapshot status one.db -w json
e snapshot status one.db -w table
e snapshot status nothing.db
say snapshot restore one.db; echo
etcdctl snapshot restore one.db --data-dir restored --name r --initial-cluster r=http://127.0.0.1:9 --initial-advertise-peer-urls http://127.0.0.1:9 2>&1 | grep -o '"msg":"restored snapshot"'
ls restored/member
background mirror make-mirror --prefix s/ --dest-prefix m/ "$LEADER"
await '[ "$(ctl get --prefix m/ --keys-only | grep -c m/)" = 3 ]'
e put s/4 4
e del s/1
await '[ "$(ctl get --prefix m/ --keys-only | tr -d "\n")" = m/2m/3m/4 ]'
end
e get --prefix m/
