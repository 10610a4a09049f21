# Locks and elections, which live in the store as keys under leases.
e lock l echo held
e lock l -- sh -c 'exit 3'
background held lock l
lines held 1
background waiting lock l
await '[ "$(ctl get --prefix l/ --keys-only | grep -c l/)" = 2 ]'
unordered e get --prefix l/ --keys-only
echo "waiting: $(wc -l < waiting) lines"
end
background leads elect seat me
lines leads 2
background listens elect -l seat
lines listens 2
background candidate elect seat other
await '[ "$(ctl get --prefix seat/ --keys-only | grep -c seat/)" = 2 ]'
echo "candidate: $(wc -l < candidate) lines"
end
e lock
e elect
