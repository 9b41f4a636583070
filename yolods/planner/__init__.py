"""`yolods plan`: searches layouts, shows the best with their memory and time, writes their JSON.

flags     the command's flags
request   what a plan is asked for, out of the flags
choices   the layouts that there are to choose from
search    the fastest layout of every family that fits
refusal   what would fit where nothing does
recipe    a layout as a DeepSpeed JSON
report    the table, and why the others lost
picture   the memory of the best layouts, stacked
command   `yolods plan`
auto      `--deepspeed_config auto` of `train`
"""
