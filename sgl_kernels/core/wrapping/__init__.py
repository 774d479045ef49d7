"""What a bound function is wrapped in when settings ask for it. `compose` puts it together from parts it is given."""
