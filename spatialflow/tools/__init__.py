"""What a person starts: commands around the library, which never imports them."""
